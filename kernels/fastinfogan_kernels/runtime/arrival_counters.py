"""Sums over all programs of a launch, in the launch itself and in a fixed order.

Each program writes its part to memory and increments an arrival counter; the one that arrives last
adds the parts, always in the same order. Only the counter is atomic, and an integer: which program
is last changes from run to run, what it computes does not.

An arrival counter is an int32 that is 0 between launches: the last program resets it. So one buffer
serves all launches of a stream, which do not overlap; each stream has a buffer, and nothing is
cleared before a launch. A captured graph may be replayed on any stream, so each of its launches has
counters of its own, cut from a pool that was zeroed outside of the capture; what the pool lacks,
because nothing ran before the capture, the graph itself zeroes each time.
"""

import torch
from torch import Tensor

from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import is_recording
from fastinfogan_kernels.runtime.workspace import zeros

_MIN_COUNTERS = 4096
_POOL_SIZE = 1 << 18

_of_stream: dict[tuple[torch.device, int], Tensor] = {}
_pool: dict[torch.device, Tensor] = {}
_pools: list[Tensor] = []
"""All that were ever made: graphs hold their addresses, and no reference."""


def arrival_counters(count: int, like: Tensor) -> Tensor:
    """Return the arrival counters of one launch on the current stream.

    Args:
        count: how many counters.
        like: a tensor on the same device.

    Returns:
        int32, all 0, at least `count` of them; those of a recorded launch are shared with no other.
    """
    device = like.device
    if is_recording():
        return zeros(count, torch.int32, device)
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return _for_capture(count, device)
        if _pool.get(device, _NONE).numel() < _POOL_SIZE // 2:
            _pool[device] = _zeros(_POOL_SIZE, device)
            _pools.append(_pool[device])
        stream = torch.cuda.current_stream(device).cuda_stream
    buffer = _of_stream.get((device, stream), _NONE)
    if buffer.numel() < count:
        buffer = _of_stream[device, stream] = _zeros(max(2 * count, _MIN_COUNTERS), device)
    return buffer


def _for_capture(count: int, device: torch.device) -> Tensor:
    pool = _pool.get(device, _NONE)
    if pool.numel() < count:
        return _zeros(count, device)
    # Kernels are specialized for an alignment: a capture needs the same as eager launches.
    _pool[device] = pool[triton.cdiv(count, 32) * 32 :]
    return pool[:count]


def _zeros(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)


_NONE = torch.empty(0, dtype=torch.int32)


@triton.jit
def is_last(counter_ptr, PROGRAMS):
    """Return whether this is the last of PROGRAMS to arrive; the last one resets the counter."""
    # All threads of this program have written their parts before one of them arrives ...
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    # ... and none reads others' parts before that.
    tl.debug_barrier()
    last = arrived == PROGRAMS - 1
    tl.store(counter_ptr, 0, mask=last)
    return last


@triton.jit
def sum_parts(parts_ptr, PARTS, BLOCK: tl.constexpr):
    """Sum fp32 (PARTS) in a fixed order; loads bypass L1, which may hold older values."""
    t = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, PARTS, BLOCK):
        at = start + t
        total += tl.load(parts_ptr + at, mask=at < PARTS, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


@triton.jit
def sum_rows(parts_ptr, column, column_ok, PARTS, STRIDE, BLOCK: tl.constexpr):
    """Apply `sum_parts` to fp32 (PARTS, STRIDE), for several columns at once."""
    t = tl.arange(0, BLOCK)
    total = tl.zeros(column.shape, tl.float32)
    for start in range(0, PARTS, BLOCK):
        row = start + t
        total += tl.sum(
            tl.load(
                parts_ptr + row[:, None] * STRIDE + column[None, :],
                mask=(row < PARTS)[:, None] & column_ok[None, :],
                other=0.0,
                cache_modifier=".cg",
            ),
            axis=0,
        )
    return total


@triton.jit
def sum_splits(parts_ptr, at, ok, PARTS, SIZE, UNROLL: tl.constexpr):
    """Apply `sum_parts` to fp32 (PARTS, SIZE) at offsets; UNROLL loads are in flight at once."""
    total = tl.zeros(at.shape, tl.float32)
    for _ in tl.range(0, PARTS, loop_unroll_factor=UNROLL):
        total += tl.load(parts_ptr + at, mask=ok, other=0.0, cache_modifier=".cg")
        parts_ptr += SIZE
    return total
