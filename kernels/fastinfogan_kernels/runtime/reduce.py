"""Sums over all programs of a launch, in the launch itself and in a fixed order.

Every program leaves its part in memory and takes a ticket; the one with the last ticket adds the
parts, always in the same order. Only the ticket is an atomic, and an integer: which program is the
last changes from run to run, what it computes does not.
"""

from fastinfogan_kernels.runtime.lang import tl, triton


@triton.jit
def is_last(ticket_ptr, PROGRAMS):
    """Whether this is the last of PROGRAMS to arrive; the last one puts the ticket back to 0."""
    # All threads of this program have written their parts before one of them takes the ticket ...
    tl.debug_barrier()
    arrived = tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu")
    # ... and none reads others' parts before that.
    tl.debug_barrier()
    last = arrived == PROGRAMS - 1
    tl.store(ticket_ptr, 0, mask=last)
    return last


@triton.jit
def merge(parts_ptr, PARTS, BLOCK: tl.constexpr):
    """The sum of fp32 (PARTS), in a fixed order, loaded past the cache that may hold old ones."""
    t = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, PARTS, BLOCK):
        at = start + t
        total += tl.load(parts_ptr + at, mask=at < PARTS, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


@triton.jit
def merge_rows(parts_ptr, column, column_ok, PARTS, STRIDE, BLOCK: tl.constexpr):
    """As `merge`, of fp32 (PARTS, STRIDE), for these columns side by side."""
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
def add_splits(parts_ptr, at, ok, PARTS, SIZE, UNROLL: tl.constexpr):
    """The sum of fp32 (PARTS, SIZE) at these offsets, part after part, as in `merge`.

    The loads of UNROLL parts are in flight at once.
    """
    total = tl.zeros(at.shape, tl.float32)
    for _ in tl.range(0, PARTS, loop_unroll_factor=UNROLL):
        total += tl.load(parts_ptr + at, mask=ok, other=0.0, cache_modifier=".cg")
        parts_ptr += SIZE
    return total
