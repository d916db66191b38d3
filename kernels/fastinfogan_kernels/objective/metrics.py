"""What an iteration measured, added up on the device: one launch, and no host until it is read."""

import torch
from torch import Tensor

from fastinfogan_kernels.adam.adam import OVERFLOWED
from fastinfogan_kernels.adam.loss_scale import GROWTH, LEAST, MOST, LossScale
from fastinfogan_kernels.objective.metrics_kernel import accumulate_kernel
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.machine import power_of_two
from fastinfogan_kernels.runtime.registry import register

TOO_MANY = 3
"""Iterations in a row that may not be skipped because something in them was not finite."""


def _accumulate(
    d_losses: Tensor, g_losses: Tensor, values: Tensor, entropies: Tensor, problems: Tensor,
    sums: Tensor, tally: Tensor, scaling: Tensor | None, base: Tensor | None,
    weights: Tensor | None, counter: Tensor | None,
) -> None:  # fmt: skip
    tensors = (d_losses, g_losses, values, entropies)
    launch(
        accumulate_kernel,
        (1,),
        *tensors,
        problems,
        sums,
        tally,
        scaling,
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
        read=(*tensors, problems, sums, tally, scaling, base, counter),
        written=(problems, sums, tally, scaling, weights, counter),
    )


_by_kernel = register(
    "accumulate(Tensor d_losses, Tensor g_losses, Tensor values, Tensor entropies, "
    "Tensor(a!) problems, Tensor(b!) sums, Tensor(c!) tally, Tensor(d!)? scaling, Tensor? base, "
    "Tensor(e!)? weights, Tensor(f!)? counter) -> ()",
    _accumulate,
)


def accumulate(
    d_losses: Tensor,
    g_losses: Tensor,
    values: Tensor,
    entropies: Tensor,
    problems: Tensor,
    sums: Tensor,
    tally: Tensor,
    loss_scale: LossScale | None = None,
    counter: Tensor | None = None,
    *,
    by_triton: bool,
) -> None:
    """Add an iteration's measures to their sums, unless something in it was not finite.

    Args:
        d_losses: (2,), of real and of generated images.
        g_losses: (1,).
        values: (codes,), mean log-likelihoods in nats.
        entropies: (codes,), H(c) in nats.
        problems: int32, one element: 0 if the iteration was finite; rows that were not, and
            `adam.OVERFLOWED` if scaled gradients were not. It is 0 afterwards.
        sums: (2 + codes,), added to: D's loss, G's loss, each code's bound.
        tally: int32 (3,), added to: iterations in the sums, iterations skipped, and iterations
            skipped since the last good one, without those that only found the scale too large;
            `TOO_MANY` in a row stay.
        loss_scale: moved on, if there is one.
        counter: int64 (), counted on, if there is one.
        by_triton: whether Triton's kernel computes it, or plain torch.
    """
    scaled = (
        (None,) * 3
        if loss_scale is None
        else (loss_scale.state, loss_scale.base, loss_scale.weights)
    )
    if by_triton:
        _by_kernel(d_losses, g_losses, values, entropies, problems, sums, tally, *scaled, counter)
        return
    found_wrong = problems.view(())
    good = found_wrong == 0
    found = torch.cat([d_losses.sum()[None], g_losses, entropies + values])
    sums += torch.where(good, found, 0.0)
    one = good.to(tally.dtype)
    broken = 1 - one
    if loss_scale is not None:
        scale, since = loss_scale.state.unbind()
        too_large = (found_wrong == OVERFLOWED) & (scale > LEAST)
        broken = broken * (~too_large).to(tally.dtype)
        since = torch.where(found_wrong >= OVERFLOWED, 0.0, since + one)
        grown = since >= GROWTH
        factor = torch.where(found_wrong >= OVERFLOWED, 0.5, torch.where(grown, 2.0, 1.0))
        new = (scale * factor).clamp(LEAST, MOST)
        loss_scale.state.copy_(torch.stack([new, torch.where(grown, 0.0, since)]))
        loss_scale.restored()
    tally += torch.stack([one, 1 - one, broken])
    tally[2] *= torch.where(tally[2] >= TOO_MANY, 1, 1 - one)
    problems.zero_()
    if counter is not None:
        counter += 1
