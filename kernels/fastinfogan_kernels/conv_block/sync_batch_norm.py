"""Batch norm across processes: what one rank must know of the others' batches.

Every rank hands in a batch of the same size, whose tiles it has merged into one: a few numbers a
feature, whatever the batch. These are gathered rather than reduced, and merged by every rank in the
same order, so that all have the same statistics to the last bit.
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

Group = Any
"""None for this process alone, "world" for all processes, or a torch.distributed group."""

_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""Under its name since torch 2.13, or the one before."""


def handle(group: Group) -> Any:
    """The group as torch.distributed takes it.

    Raises:
        InputError: processes have not been joined.
    """
    if not dist.is_initialized():
        raise InputError(
            "synchronised batch norm needs torch.distributed.init_process_group to be called first"
        )
    return None if group == "world" else group


def size(group: Group) -> int:
    """How many ranks there are."""
    return 1 if group is None else dist.get_world_size(handle(group))


@contextmanager
def reporting_lost_ranks() -> Iterator[None]:
    """Turn what a collective raises when its peers are gone into one line.

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


def gather_tiles(tiles: Tensor, group: Group) -> Tensor:
    """All ranks' tiles, one of each: (groups, 1, 2, columns) to (groups, ranks, 2, columns)."""
    if group is None:
        return tiles
    return _everybodys(tiles, group).movedim(0, 1).flatten(1, 2).contiguous()


def _everybodys(own: Tensor, group: Group) -> Tensor:
    """All ranks' tensors, (ranks, ...), by one message into one memory."""
    found = empty((size(group), *own.shape), own.dtype, own.device)
    with reporting_lost_ranks():
        _all_gather(found.flatten(0, 1), own.contiguous(), handle(group))
    return found


def merge_statistics(mean: Tensor, variance: Tensor, group: Group) -> None:
    """Make of each rank's statistics those of all ranks' batches, in place.

    Args:
        mean: of this rank's batch, any shape.
        variance: of this rank's batch, biased, of the same shape.
        group: of ranks.
    """
    means, variances = _everybodys(torch.stack([mean, variance]), group).unbind(1)
    mean.copy_(means.mean(0))
    variance.copy_((variances + (means - mean).square()).mean(0))


def summed(values: Tensor, group: Group) -> Tensor:
    """The sums over all ranks."""
    values = values.contiguous()
    with reporting_lost_ranks():
        dist.all_reduce(values, group=handle(group))
    return values


def batch_norm(
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: Group,
) -> Tensor:
    """Batch norm over all ranks, in plain torch, differentiable any number of times.

    Args:
        z: (N, C, ...).
        gamma: (C,).
        beta: (C,).
        running_mean: (C,) or None; updated in place.
        running_var: likewise.
        momentum: weight of the new statistics.
        eps: added to the variance.
        group: of ranks.
    """
    axes = [0, *range(2, z.dim())]
    shape = [1, -1] + [1] * (z.dim() - 2)
    count = z.numel() // z.shape[1] * size(group)
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


def _sum_over_ranks(values: Tensor, group: Group) -> Tensor:
    total: Tensor = all_reduce(values, group=handle(group))  # type: ignore[no-untyped-call]
    return total
