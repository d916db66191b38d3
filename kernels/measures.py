"""What an iteration measured, added up on the device: one launch, and no host until it is read."""

import torch
from torch import Tensor

from fastinfogan.kernels.device.measures import accumulate_kernel
from fastinfogan.kernels.launch import launch
from fastinfogan.kernels.library import register
from fastinfogan.kernels.tuning import power_of_two


def _accumulate(
    d_losses: Tensor, g_losses: Tensor, values: Tensor, entropies: Tensor, problems: Tensor,
    sums: Tensor, tally: Tensor,
) -> None:  # fmt: skip
    tensors = (d_losses, g_losses, values, entropies)
    launch(
        accumulate_kernel,
        (1,),
        *tensors,
        problems,
        sums,
        tally,
        values.numel(),
        BLOCK=power_of_two(values.numel(), 2, 1 << 16),
        num_warps=1,
        read=(*tensors, problems, sums, tally),
        written=(problems, sums, tally),
    )


_by_kernel = register(
    "accumulate(Tensor d_losses, Tensor g_losses, Tensor values, Tensor entropies, "
    "Tensor(a!) problems, Tensor(b!) sums, Tensor(c!) tally) -> ()",
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
    *,
    by_triton: bool,
) -> None:
    """Add an iteration's measures to their sums, unless something in it was not finite.

    Args:
        d_losses: (2,), of real and of generated images.
        g_losses: (1,).
        values: (codes,), mean log-likelihoods in nats.
        entropies: (codes,), H(c) in nats.
        problems: int32, one element: 0 if the iteration was finite. It is 0 afterwards.
        sums: (2 + codes,), added to: D's loss, G's loss, each code's bound.
        tally: int32 (3,), added to: iterations in the sums, iterations skipped, and iterations
            skipped since the last good one.
        by_triton: whether Triton's kernel computes it, or plain torch.
    """
    if by_triton:
        _by_kernel(d_losses, g_losses, values, entropies, problems, sums, tally)
        return
    good = problems.view(()) == 0
    found = torch.cat([d_losses.sum()[None], g_losses, entropies + values])
    sums += torch.where(good, found, torch.zeros_like(found))
    one = good.to(tally.dtype)
    tally += torch.stack([one, 1 - one, 1 - one])
    tally[2] *= 1 - one
    problems.zero_()
