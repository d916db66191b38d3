"""Counter-based random numbers, Philox4x32-10, and the shuffle of an epoch, in NumPy.

Every random number of a run is a pure function of (seed, step, stream, row, column), so the whole
random state of a run is (seed, step), a row's numbers do not depend on its batch, and CPUs, GPUs
and several processes draw the same. This module is the definition; `inputs.triton_random` and
kernels/native implement it in Triton and C++, with the same bits.

Layout: key = (seed low, seed high), counter = (column // 4, row, step, stream); the four words of
a counter are columns 4j .. 4j + 3.

An epoch's shuffle is a Feistel network on pairs (left, right), each in [0, side), where side * side
is the least square that holds the set. A position that is mapped outside the set is mapped again
until it is inside, which keeps the map a bijection of the set. So the image at a position is a pure
function, too, without an array, which a GPU computes inside a captured program.

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (constants and rounds);
Luby and Rackoff 1988 (the network), Black and Rogaway 2002 (cycle walking).
"""

import math
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastinfogan_kernels.errors import InputError

Words = NDArray[np.uint32]
Floats = NDArray[np.float32]

_MULTIPLIER: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_LOW: Final = np.uint64(0xFFFFFFFF)


class Stream(IntEnum):
    """The purposes for which a run draws numbers; each has its own stream."""

    D_STEP = 0
    G_STEP = 1
    DATA_ORDER = 2
    AUGMENT = 3
    PICTURES = 4
    EVALUATION = 5
    RENDERED = 6


def require_seed(seed: int) -> None:
    """Check a seed.

    Raises:
        InputError: it is not in 0 <= seed < 2^64.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"`seed` must be 0 or more and below 2^64, not {seed}")


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = 10) -> Words:
    """Encrypt counters.

    Args:
        counter: uint32 (..., 4).
        key: two 32-bit numbers.
        rounds: 10 for the generator that passes BigCrush.

    Returns:
        uint32 (..., 4), one block of four words per counter.
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = _MULTIPLIER[0] * c0, _MULTIPLIER[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(seed: int, step: int, stream: int, rows: int, columns: int, first_row: int = 0) -> Words:
    """Draw random words.

    Args:
        seed: 0 <= seed < 2^64, the run's.
        step: 0 <= step < 2^32, the iteration.
        stream: the purpose, see `Stream`.
        rows: number of rows.
        columns: words of a row.
        first_row: the global number of the first row (a rank's offset in the batch).

    Returns:
        uint32 (rows, columns).

    Raises:
        InputError: the seed is out of range.
    """
    require_seed(seed)
    blocks = -(-columns // 4)
    counter = np.empty((rows, blocks, 4), np.uint32)
    counter[..., 0] = np.arange(blocks, dtype=np.uint32)
    counter[..., 1] = np.arange(first_row, first_row + rows, dtype=np.uint32)[:, None]
    counter[..., 2] = step
    counter[..., 3] = stream
    drawn = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return np.ascontiguousarray(drawn.reshape(rows, 4 * blocks)[:, :columns])


def uniform(drawn: Words) -> Floats:
    """Turn words into U(-1, 1), float32 of the same shape.

    The top 24 bits n give (2n + 1 - 2^24) / 2^24: exact in float32, symmetric, never -1, 0 or 1.
    """
    odd = ((drawn >> np.uint32(8)).astype(np.int32) << np.int32(1)) + np.int32(1 - (1 << 24))
    return odd.astype(np.float32) * np.float32(2.0**-24)


def below(drawn: Words, bound: int) -> NDArray[np.int64]:
    """Turn words into integers in [0, bound), int64: the high half of word * bound.

    The bias is at most bound / 2^32.
    """
    return ((drawn.astype(np.uint64) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


# ln(1 + x) / x on [sqrt(1/2) - 1, sqrt(2) - 1], after the x - x^2/2 part (Cephes, logf).
_LOG: Final = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
# Inverse error function, central part and tail (Giles 2010, single precision).
_ERFINV_CENTRE: Final = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_ERFINV_TAIL: Final = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


def _polynomial(coefficients: tuple[float, ...], x: Floats) -> Floats:
    value = np.full_like(x, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        value = value * x + np.float32(coefficient)
    return value


def _log(x: Floats) -> Floats:
    """Compute log of positive, normal float32, by operations that round alike everywhere."""
    bits = x.view(np.int32)
    exponent = (bits >> np.int32(23)) - np.int32(126)
    mantissa = ((bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000)).view(np.float32)
    small = mantissa < np.float32(0.707106781)
    exponent = np.where(small, exponent - np.int32(1), exponent).astype(np.float32)
    m = np.where(small, mantissa + mantissa, mantissa) - np.float32(1)
    square = m * m
    value = _polynomial(_LOG, m) * m * square
    value = value + np.float32(-2.12194440e-4) * exponent
    value = value + np.float32(-0.5) * square
    result: Floats = (m + value) + np.float32(0.693359375) * exponent
    return result


def normal(drawn: Words) -> Floats:
    """Turn words into N(0, 1), float32 of the same shape, by inversion of `uniform`.

    Only +, *, sqrt and comparisons in float32, each rounded alike on every machine that does not
    contract them into fused multiply-adds. |value| < 5.5, as 24 bits have no more tail.
    """
    x = uniform(drawn)
    w = -_log((np.float32(1) - x) * (np.float32(1) + x))
    centre = _polynomial(_ERFINV_CENTRE, w - np.float32(2.5))
    tail = _polynomial(_ERFINV_TAIL, np.sqrt(w) - np.float32(3))
    erfinv = np.where(w < np.float32(5), centre, tail) * x
    return erfinv * np.float32(1.41421356)


# --- the shuffle ---------------------------------------------------------------------------------

SHUFFLE_ROUNDS: Final = 8
MAX_SHUFFLED: Final = 2**31

_MURMUR3: Final = (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))


def shuffle_keys(seed: int, epoch: int, stream: Stream = Stream.DATA_ORDER) -> Words:
    """Return an epoch's keys, uint32 (SHUFFLE_ROUNDS,); they repeat after 2^32 epochs."""
    return words(seed, epoch & 0xFFFFFFFF, stream, 1, SHUFFLE_ROUNDS).reshape(SHUFFLE_ROUNDS)


def shuffle_side(count: int) -> int:
    """Return the least side whose square holds `count` images."""
    return math.isqrt(count - 1) + 1


def permute(position: NDArray[np.int64], count: int, key: Words) -> NDArray[np.int64]:
    """Return the images at positions of a shuffle.

    Args:
        position: int64, any shape, in [0, count).
        count: images in the set, 1 to 2^31.
        key: uint32 (SHUFFLE_ROUNDS,).

    Returns:
        int64 of the same shape, in [0, count); a bijection.

    Raises:
        InputError: the count is out of range.
    """
    if not 0 < count <= MAX_SHUFFLED:
        raise InputError(f"a set of 1 to {MAX_SHUFFLED:,} images can be shuffled, not of {count}")
    side = shuffle_side(count)
    index = _network(position, side, key)
    outside = index >= count
    while outside.any():
        index[outside] = _network(index[outside], side, key)
        outside = index >= count
    return index


def _network(value: NDArray[np.int64], side: int, key: Words) -> NDArray[np.int64]:
    left, right = value // side, value % side
    for each in key:
        left, right = right, (left + _mixed(right, each, side)) % side
    return left * side + right


def _mixed(value: NDArray[np.int64], key: np.uint32, side: int) -> NDArray[np.int64]:
    """Hash value and key to [0, side), by the last steps of murmur3."""
    h = value.astype(np.uint32) ^ key
    h ^= h >> np.uint32(16)
    h *= _MURMUR3[0]
    h ^= h >> np.uint32(13)
    h *= _MURMUR3[1]
    h ^= h >> np.uint32(16)
    return below(h, side)


def shuffled_indices(seed: int, first: int, rows: int, count: int) -> NDArray[np.int64]:
    """Return the images at `rows` positions of concatenated epochs from `first` on; int64."""
    epoch, position = np.divmod(np.arange(first, first + rows), count)
    found = np.empty(rows, np.int64)
    for number in range(int(epoch[0]), int(epoch[-1]) + 1):
        here = epoch == number
        found[here] = permute(position[here], count, shuffle_keys(seed, number))
    return found
