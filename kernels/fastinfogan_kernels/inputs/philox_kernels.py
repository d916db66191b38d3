"""Philox4x32-10 and the shapes its words take, on the device: the twin of fastinfogan/philox.py.

That module is the definition and tells the layout of key and counter. Bit for bit the same numbers
need the same operations in the same order, each rounded on its own: whoever launches a kernel that
calls `normal` says enable_fp_fusion=False, and the square root is the correctly rounded one.
"""

from fastinfogan_kernels.runtime.lang import tl, triton


@triton.jit
def encrypt(c0, c1, c2, c3, k0, k1):
    """One block of four words per counter; all uint32, counters and keys broadcast."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def words(column, row, step, stream, k0, k1):
    """The random word of each (row, column); all uint32, of one shape but for scalars."""
    zero = tl.zeros_like(column + row)
    w0, w1, w2, w3 = encrypt(zero + column // 4, zero + row, zero + step, zero + stream, k0, k1)
    place = zero + column % 4
    return tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))


@triton.jit
def uniform(word):
    """U(-1, 1) in fp32: the odd multiples of 2^-24."""
    odd = ((word >> 8).to(tl.int32) << 1) + (1 - (1 << 24))
    return odd.to(tl.float32) * 0.000000059604644775390625  # 2^-24


@triton.jit
def below(word, bound):
    """An integer in [0, bound), uint32; 0 for a bound of 0."""
    return tl.umulhi(word, bound)


@triton.jit
def _polynomial(
    x,
    C8: tl.constexpr, C7: tl.constexpr, C6: tl.constexpr, C5: tl.constexpr, C4: tl.constexpr,
    C3: tl.constexpr, C2: tl.constexpr, C1: tl.constexpr, C0: tl.constexpr,
):  # fmt: skip
    """C8 x^8 + C7 x^7 + ... + C0, by Horner's rule."""
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
    """Natural logarithm of positive, normal fp32, as in philox.py."""
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
    """N(0, 1) in fp32, by inversion of `uniform`."""
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
