"""Losses and bounds of iterations, accumulated on the device: one launch, no synchronisation.

An iteration is skipped if its non-finite count is not 0; then Adam has updated nothing either. The
loss scale of fp16 follows in the same launch, see `loss_scale`.
"""

import torch
from torch import Tensor

from fastinfogan_kernels.adam.adam import OVERFLOWED
from fastinfogan_kernels.adam.loss_scale import GROWTH, LEAST, MOST, LossScale
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.machine import power_of_two
from fastinfogan_kernels.runtime.registry import register

TOO_MANY = 3
"""Consecutive skipped iterations at which training has failed."""


def _reference(
    d_losses: Tensor, g_losses: Tensor, values: Tensor, entropies: Tensor, non_finite: Tensor,
    sums: Tensor, step_counts: Tensor, loss_scale: LossScale | None, counter: Tensor | None,
) -> None:  # fmt: skip
    count = non_finite.view(())
    good = count == 0
    found = torch.cat([d_losses.sum()[None], g_losses, entropies + values])
    sums += torch.where(good, found, 0.0)
    one = good.to(step_counts.dtype)
    failed = 1 - one
    if loss_scale is not None:
        scale, since = loss_scale.state.unbind()
        overflow_only = (count == OVERFLOWED) & (scale > LEAST)
        failed = failed * (~overflow_only).to(step_counts.dtype)
        since = torch.where(count >= OVERFLOWED, 0.0, since + one)
        grown = since >= GROWTH
        factor = torch.where(count >= OVERFLOWED, 0.5, torch.where(grown, 2.0, 1.0))
        new = (scale * factor).clamp(LEAST, MOST)
        loss_scale.state.copy_(torch.stack([new, torch.where(grown, 0.0, since)]))
        loss_scale.restored()
    step_counts += torch.stack([one, 1 - one, failed])
    step_counts[2] *= torch.where(step_counts[2] >= TOO_MANY, 1, 1 - one)
    non_finite.zero_()
    if counter is not None:
        counter += 1


@triton.jit
def accumulate_kernel(
    d_losses_ptr,  # fp32 (2): of real and of generated images
    g_losses_ptr,  # fp32 (1)
    values_ptr,  # fp32 (CODES): mean log-likelihoods
    entropies_ptr,  # fp32 (CODES)
    non_finite_ptr,  # int32 (1): 0 if the iteration was finite; 0 afterwards
    sums_ptr,  # fp32 (2 + CODES), added to
    step_counts_ptr,  # int32 (3), added to: accumulated, skipped, consecutive skipped iterations
    scale_state_ptr,  # fp32 (2) or None: the loss scale, good iterations since it changed
    base_ptr,  # fp32 (WEIGHTS) or None
    weights_ptr,  # fp32 (WEIGHTS) out, or None: base times the scale
    counter_ptr,  # int64 () or None: the iteration's number, incremented
    CODES, WEIGHTS,
    OVERFLOWED: tl.constexpr, GROWTH: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    TOO_MANY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add D's loss, G's loss and each code's bound to the sums, if all is finite. Grid: (1,)."""
    non_finite = tl.load(non_finite_ptr)
    c = tl.arange(0, BLOCK)
    ok = c < CODES
    bounds = tl.load(values_ptr + c, mask=ok, other=0.0)
    bounds += tl.load(entropies_ptr + c, mask=ok, other=0.0)
    d_loss = tl.load(d_losses_ptr) + tl.load(d_losses_ptr + 1)
    g_loss = tl.load(g_losses_ptr)
    accumulated, skipped = tl.load(step_counts_ptr), tl.load(step_counts_ptr + 1)
    consecutive = tl.load(step_counts_ptr + 2)
    failed = 1
    if scale_state_ptr is not None:
        scale, since = tl.load(scale_state_ptr), tl.load(scale_state_ptr + 1)
        if (non_finite == OVERFLOWED) & (scale > LEAST):
            failed = 0
        factor = 1.0
        if non_finite >= OVERFLOWED:
            since, factor = 0.0, 0.5
        elif non_finite == 0:
            since += 1.0
            if since >= GROWTH:
                since, factor = 0.0, 2.0
        scale = tl.minimum(tl.maximum(scale * factor, LEAST), MOST)
        tl.store(scale_state_ptr, scale)
        tl.store(scale_state_ptr + 1, since)
        base = tl.load(base_ptr + c, mask=c < WEIGHTS, other=0.0)
        tl.store(weights_ptr + c, base * scale, mask=c < WEIGHTS)
    if non_finite != 0:
        tl.store(step_counts_ptr + 1, skipped + 1)
        tl.store(step_counts_ptr + 2, consecutive + failed)
        tl.store(non_finite_ptr, 0)
    else:
        tl.store(sums_ptr, tl.load(sums_ptr) + d_loss)
        tl.store(sums_ptr + 1, tl.load(sums_ptr + 1) + g_loss)
        to = sums_ptr + 2 + c
        tl.store(to, tl.load(to, mask=ok, other=0.0) + bounds, mask=ok)
        tl.store(step_counts_ptr, accumulated + 1)
        # Too many stay until the host has read them.
        tl.store(step_counts_ptr + 2, tl.where(consecutive >= TOO_MANY, consecutive, 0))
    if counter_ptr is not None:
        tl.store(counter_ptr, tl.load(counter_ptr) + 1)


@register(
    "accumulate",
    mutates_args=("non_finite", "sums", "step_counts", "scale_state", "weights", "counter"),
)
def _accumulate_op(
    d_losses: Tensor, g_losses: Tensor, values: Tensor, entropies: Tensor, non_finite: Tensor,
    sums: Tensor, step_counts: Tensor, scale_state: Tensor | None, base: Tensor | None,
    weights: Tensor | None, counter: Tensor | None,
) -> None:  # fmt: skip
    tensors = (d_losses, g_losses, values, entropies)
    launch(
        accumulate_kernel,
        (1,),
        *tensors,
        non_finite,
        sums,
        step_counts,
        scale_state,
        base,
        weights,
        counter,
        values.numel(),
        0 if base is None else base.numel(),
        OVERFLOWED=OVERFLOWED,
        GROWTH=GROWTH,
        LEAST=LEAST,
        MOST=MOST,
        TOO_MANY=TOO_MANY,
        BLOCK=power_of_two(values.numel() + 1, 2, 1 << 16),
        num_warps=1,
        read=(*tensors, non_finite, sums, step_counts, scale_state, base, counter),
        written=(non_finite, sums, step_counts, scale_state, weights, counter),
    )


def accumulate(
    d_losses: Tensor,
    g_losses: Tensor,
    values: Tensor,
    entropies: Tensor,
    non_finite: Tensor,
    sums: Tensor,
    step_counts: Tensor,
    loss_scale: LossScale | None = None,
    counter: Tensor | None = None,
    *,
    by_triton: bool,
) -> None:
    """Add an iteration's losses and bounds to their sums, unless something was not finite.

    Args:
        d_losses: D's losses of real and of generated images; (2,).
        g_losses: G's loss; (1,).
        values: mean log-likelihoods; (codes,), nats.
        entropies: H(c); (codes,), nats.
        non_finite: the iteration's non-finite count, int32 (1,): rows that were not finite, plus
            `adam.OVERFLOWED` if scaled gradients were not. Reset to 0.
        sums: D's loss, G's loss, each code's bound, added to; (2 + codes,).
        step_counts: int32 (3,), added to: iterations accumulated, iterations skipped, and
            consecutive skipped ones up to now, without those in which only the loss scale was too
            large. Once `TOO_MANY`, the last is not reset by a good iteration.
        loss_scale: updated.
        counter: the iteration's number, incremented; int64 ().
        by_triton: use the kernel; else plain torch.
    """
    arguments = (d_losses, g_losses, values, entropies, non_finite, sums, step_counts)
    if not by_triton:
        _reference(*arguments, loss_scale, counter)
    elif loss_scale is None:
        _accumulate_op(*arguments, None, None, None, counter)
    else:
        _accumulate_op(*arguments, loss_scale.state, loss_scale.base, loss_scale.weights, counter)
