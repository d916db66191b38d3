"""Batch norm across processes: statistics of all ranks' batches.

Every rank has a batch of the same size, whose tile statistics it has merged into one: a few numbers
per feature, whatever the batch. They are gathered rather than reduced, and merged by every rank in
the same order, so that all have the same statistics to the last bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from fastinfogan_kernels.errors import InputError, TrainingError
from fastinfogan_kernels.runtime.workspace import empty

ProcessGroup = Any
"""None for this process alone, "world" for all processes, or a torch.distributed group."""

_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""all_gather_single since torch 2.13."""


def _resolve(group: ProcessGroup) -> Any:
    """Return the group as torch.distributed takes it.

    Raises:
        InputError: torch.distributed has not been initialized.
    """
    if not dist.is_initialized():
        raise InputError(
            "synchronised batch norm needs torch.distributed.init_process_group to be called first"
        )
    return None if group == "world" else group


def world_size(group: ProcessGroup) -> int:
    """Return the number of ranks."""
    return 1 if group is None else dist.get_world_size(_resolve(group))


@contextmanager
def reporting_lost_ranks() -> Iterator[None]:
    """Turn what a collective raises when another rank is gone into a one-line error.

    Raises:
        TrainingError: another rank is gone.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what gloo raises, and the base of torch's DistError
        first = str(error).splitlines()[0]
        raise TrainingError(
            f"another rank is gone, so this one ends, too; its message says why ({first})"
        ) from error


def all_gather_tiles(tiles: Tensor, group: ProcessGroup) -> Tensor:
    """Gather one tile per rank: (groups, 1, 2, columns) to (groups, ranks, 2, columns)."""
    if group is None:
        return tiles
    return _gather(tiles, group).movedim(0, 1).flatten(1, 2).contiguous()


def _gather(local: Tensor, group: ProcessGroup) -> Tensor:
    """Gather all ranks' tensors, (ranks, ...), in one collective."""
    found = empty((world_size(group), *local.shape), local.dtype, local.device)
    with reporting_lost_ranks():
        _ALL_GATHER(found.flatten(0, 1), local.contiguous(), _resolve(group))
    return found


def merge_statistics(mean: Tensor, variance: Tensor, group: ProcessGroup) -> None:
    """Merge each rank's statistics into those of all ranks' batches, in place.

    Args:
        mean: of this rank's batch, any shape.
        variance: of this rank's batch, biased, of the same shape.
        group: of processes.
    """
    means, variances = _gather(torch.stack([mean, variance]), group).unbind(1)
    mean.copy_(means.mean(0))
    variance.copy_((variances + (means - mean).square()).mean(0))


def all_reduce_sum(values: Tensor, group: ProcessGroup) -> Tensor:
    """Return the sums over all ranks."""
    values = values.contiguous()
    with reporting_lost_ranks():
        dist.all_reduce(values, group=_resolve(group))
    return values


def batch_norm(
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: ProcessGroup,
) -> Tensor:
    """Compute batch norm over all ranks in plain torch, differentiable any number of times.

    Args:
        z: (N, C, ...).
        gamma: (C,).
        beta: (C,).
        running_mean: (C,) or None; updated in place.
        running_var: likewise.
        momentum: weight of the new statistics.
        eps: added to the variance.
        group: of processes.
    """
    axes = [0, *range(2, z.dim())]
    shape = [1, -1] + [1] * (z.dim() - 2)
    count = z.numel() // z.shape[1] * world_size(group)
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    mean: Tensor = _sum_over_ranks(wide.sum(axes), group) / count
    centred = wide - mean.view(shape)
    m2 = _sum_over_ranks(centred.square().sum(axes), group)
    scale = gamma * torch.rsqrt(m2 / count + eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((m2 / (count - 1)).to(running_var.dtype), momentum)
    return (centred * scale.view(shape) + beta.view(shape)).to(z.dtype)


def _sum_over_ranks(values: Tensor, group: ProcessGroup) -> Tensor:
    total: Tensor = all_reduce(values, group=_resolve(group))  # type: ignore[no-untyped-call]
    return total
