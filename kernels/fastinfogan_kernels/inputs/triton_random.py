"""Triton functions for random numbers and the shuffle, bit for bit `philox`.

That module is the definition and describes the layout of key and counter. The same bits need the
same operations in the same order, each rounded by itself: a kernel that calls `normal` must be
launched with enable_fp_fusion=False; the square root is the correctly rounded one.
"""

from fastinfogan_kernels.runtime.lang import tl, triton


@triton.jit
def encrypt(c0, c1, c2, c3, k0, k1):
    """Encrypt counters: a block of four words for each; all uint32, counters and keys broadcast."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def words(column, row, step, stream, k0, k1):
    """Return the random word of each (row, column); all uint32, broadcast."""
    zero = tl.zeros_like(column + row)
    w0, w1, w2, w3 = encrypt(zero + column // 4, zero + row, zero + step, zero + stream, k0, k1)
    which = zero + column % 4
    return tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))


@triton.jit
def uniform(word):
    """Turn words into U(-1, 1) in fp32: odd multiples of 2^-24."""
    odd = ((word >> 8).to(tl.int32) << 1) + (1 - (1 << 24))
    return odd.to(tl.float32) * 0.000000059604644775390625  # 2^-24


@triton.jit
def below(word, bound):
    """Turn words into integers in [0, bound), uint32; 0 for a bound of 0."""
    return tl.umulhi(word, bound)


@triton.jit
def _polynomial(
    x,
    C8: tl.constexpr, C7: tl.constexpr, C6: tl.constexpr, C5: tl.constexpr, C4: tl.constexpr,
    C3: tl.constexpr, C2: tl.constexpr, C1: tl.constexpr, C0: tl.constexpr,
):  # fmt: skip
    """Return C8 x^8 + C7 x^7 + ... + C0, by Horner's rule."""
    value = C8 * x + C7
    value = value * x + C6
    value = value * x + C5
    value = value * x + C4
    value = value * x + C3
    value = value * x + C2
    value = value * x + C1
    return value * x + C0


@triton.jit
def _log(x):
    """Return the natural logarithm of positive, normal fp32."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 126
    mantissa = ((bits & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    small = mantissa < 0.707106781
    exponent = tl.where(small, exponent - 1, exponent).to(tl.float32)
    m = tl.where(small, mantissa + mantissa, mantissa) - 1.0
    square = m * m
    series = _polynomial(
        m,
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )  # fmt: skip
    value = series * m * square
    value = value + -2.12194440e-4 * exponent
    value = value + -0.5 * square
    return (m + value) + 0.693359375 * exponent


@triton.jit
def normal(word):
    """Turn words into N(0, 1) in fp32, by inversion of `uniform`."""
    x = uniform(word)
    w = -_log((1.0 - x) * (1.0 + x))
    centre = _polynomial(
        w - 2.5,
        2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
        -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
    )  # fmt: skip
    tail = _polynomial(
        tl.sqrt_rn(w) - 3.0,
        -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
        -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
    )  # fmt: skip
    return tl.where(w < 5.0, centre, tail) * x * 1.41421356


@triton.jit
def _round(left, right, key, side):
    h = right ^ key
    h ^= h >> 16
    h *= 0x85EBCA6B
    h ^= h >> 13
    h *= 0xC2B2AE35
    h ^= h >> 16
    return right, (left + below(h, side)) % side


@triton.jit
def _network(value, side, k0, k1, k2, k3, k4, k5, k6, k7):
    left, right = value // side, value % side
    left, right = _round(left, right, k0, side)
    left, right = _round(left, right, k1, side)
    left, right = _round(left, right, k2, side)
    left, right = _round(left, right, k3, side)
    left, right = _round(left, right, k4, side)
    left, right = _round(left, right, k5, side)
    left, right = _round(left, right, k6, side)
    left, right = _round(left, right, k7, side)
    return left * side + right


@triton.jit
def image_at(position, count, side, stream, seed_low, seed_high):
    """Return the index, int64 in [0, count), of the image at a position in concatenated epochs.

    All arguments are scalars: position and count int64, side uint32 with side * side >= count, the
    others uint32.
    """
    epoch = (position // count).to(tl.uint32)
    zero = epoch & 0
    k0, k1, k2, k3 = encrypt(zero, zero, epoch, zero + stream, seed_low, seed_high)
    k4, k5, k6, k7 = encrypt(zero + 1, zero, epoch, zero + stream, seed_low, seed_high)
    index = (position % count).to(tl.uint32)
    index = _network(index, side, k0, k1, k2, k3, k4, k5, k6, k7)
    while index.to(tl.int64) >= count:
        index = _network(index, side, k0, k1, k2, k3, k4, k5, k6, k7)
    return index.to(tl.int64)
