"""The shuffle of an epoch on the device: the twin of fastinfogan/shuffle.py, bit for bit."""

from fastinfogan_kernels.inputs.philox_kernels import below, encrypt
from fastinfogan_kernels.runtime.lang import tl, triton


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
def _network(place, side, k0, k1, k2, k3, k4, k5, k6, k7):
    left, right = place // side, place % side
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
    """Which image stands at a position of epochs laid end to end.

    Args: position and count int64, side uint32 with side * side >= count, the others uint32; all
    scalars. Returns an int64 in [0, count).
    """
    epoch = (position // count).to(tl.uint32)
    zero = epoch & 0
    k0, k1, k2, k3 = encrypt(zero, zero, epoch, zero + stream, seed_low, seed_high)
    k4, k5, k6, k7 = encrypt(zero + 1, zero, epoch, zero + stream, seed_low, seed_high)
    place = (position % count).to(tl.uint32)
    index = _network(place, side, k0, k1, k2, k3, k4, k5, k6, k7)
    while index.to(tl.int64) >= count:
        index = _network(index, side, k0, k1, k2, k3, k4, k5, k6, k7)
    return index.to(tl.int64)
