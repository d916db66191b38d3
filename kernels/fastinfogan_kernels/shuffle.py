"""The shuffle of an epoch as a keyed bijection: the image at a position, without an array.

An epoch's shuffle is a Feistel network on pairs (left, right), each in [0, side), where side * side
is the least square that holds the set. A position that is mapped outside the set is mapped again
until it is inside, which keeps the map a bijection of the set. So an index is a pure function of
seed and position, which a GPU computes inside a captured program. `inputs.triton_random` implements
it in Triton, with the same bits.

Sources: Luby and Rackoff 1988 (the network), Black and Rogaway 2002 (cycle walking).
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastinfogan_kernels import philox
from fastinfogan_kernels.errors import InputError

ROUNDS: Final = 8
MAX_COUNT: Final = 2**31

_MULTIPLIER: Final = (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))


def keys(seed: int, epoch: int, stream: philox.Stream = philox.Stream.DATA_ORDER) -> philox.Words:
    """Return the round keys of an epoch, uint32 (ROUNDS,); they repeat after 2^32 epochs."""
    return philox.words(seed, epoch & 0xFFFFFFFF, stream, 1, ROUNDS).reshape(ROUNDS)


def side_of(count: int) -> int:
    """Return the least side whose square holds `count` images."""
    return math.isqrt(count - 1) + 1


def permute(position: NDArray[np.int64], count: int, key: philox.Words) -> NDArray[np.int64]:
    """Return the images at positions of a shuffle.

    Args:
        position: int64, any shape, in [0, count).
        count: images in the set, 1 to 2^31.
        key: uint32 (ROUNDS,).

    Returns:
        int64 of the same shape, in [0, count); a bijection.

    Raises:
        InputError: the count is out of range.
    """
    if not 0 < count <= MAX_COUNT:
        raise InputError(f"a set of 1 to {MAX_COUNT:,} images can be shuffled, not of {count}")
    side = side_of(count)
    index = _network(position, side, key)
    outside = index >= count
    while outside.any():
        index[outside] = _network(index[outside], side, key)
        outside = index >= count
    return index


def _network(value: NDArray[np.int64], side: int, key: philox.Words) -> NDArray[np.int64]:
    left, right = value // side, value % side
    for each in key:
        left, right = right, (left + _mixed(right, each, side)) % side
    return left * side + right


def _mixed(value: NDArray[np.int64], key: np.uint32, side: int) -> NDArray[np.int64]:
    """Hash value and key to [0, side), by the last steps of murmur3."""
    h = value.astype(np.uint32) ^ key
    h ^= h >> np.uint32(16)
    h *= _MULTIPLIER[0]
    h ^= h >> np.uint32(13)
    h *= _MULTIPLIER[1]
    h ^= h >> np.uint32(16)
    return philox.below(h, side)


def indices(seed: int, first: int, rows: int, count: int) -> NDArray[np.int64]:
    """Return the images at `rows` positions of concatenated epochs from `first` on; int64."""
    epoch, position = np.divmod(np.arange(first, first + rows), count)
    found = np.empty(rows, np.int64)
    for number in range(int(epoch[0]), int(epoch[-1]) + 1):
        here = epoch == number
        found[here] = permute(position[here], count, keys(seed, number))
    return found
