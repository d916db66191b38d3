"""Data-parallel training of one run by several processes, started by torchrun.

Every process holds the whole set of images and all networks, draws its own rows of the batch, and
all-reduces its gradients in one flat tensor per step. So a batch gives the same iteration
however many processes share it. The main process, rank 0, alone writes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fastinfogan.errors import InputError
from fastinfogan_kernels.adam.adam import OVERFLOWED
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup, reporting_lost_ranks

_ALIGNED = 16
"""Elements; each gradient's offset in the flat tensor is a multiple."""
_MOST_ROWS = OVERFLOWED // 2
"""Beyond which rows that are not finite are no longer counted: flags stand above."""


@dataclass(frozen=True)
class Distributed:
    """This process among those that train together.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints, and writes the run directory."""
        return self.rank == 0

    def rows(self, batch_size: int) -> range:
        """Return this process's rows of a batch.

        Raises:
            InputError: the batch cannot be cut into equal parts of two rows or more.
        """
        rows, rest = divmod(batch_size, self.world_size)
        if rest or rows < 2:
            raise InputError(
                f"`batch_size={batch_size}` cannot be shared equally by {self.world_size} "
                f"ranks with 2 or more rows for each; take a multiple of {self.world_size}"
            )
        return range(self.rank * rows, (self.rank + 1) * rows)

    def batch_norm_group(self, *, synchronised: bool) -> ProcessGroup:
        """Return the process group over which batch statistics are synchronised."""
        return "world" if synchronised and self.world_size > 1 else None

    def any_process(self, *flags: bool) -> list[bool]:
        """Return which flags are set on any process; waits for all of them.

        Raises:
            TrainingError: another rank is gone.
        """
        if self.world_size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        with reporting_lost_ranks():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process run the body before the others do.

        Raises:
            TrainingError: another rank is gone.
        """
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all processes.

        Raises:
            TrainingError: another rank is gone.
        """
        self.any_process(False)


SINGLE_PROCESS = Distributed()


def started_by_torchrun() -> bool:
    """Return whether this process is one of several, by torchrun's environment variables."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group(device_type: str) -> Iterator[Distributed]:
    """Initialise the process group of the processes that torchrun started, if it did.

    On GPUs each rank takes the one of its number on its node.

    Args:
        device_type: "cpu" or "cuda".

    Raises:
        InputError: it cannot be initialised, or there are fewer GPUs than processes.
    """
    if not started_by_torchrun():
        yield SINGLE_PROCESS
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if device_type == "cuda":
        if local >= torch.cuda.device_count():
            raise InputError(
                f"rank {os.environ['RANK']} has no GPU: this node has {torch.cuda.device_count()}; "
                "start as many ranks as GPUs with --nproc-per-node"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the process group cannot be initialised: {error}") from error
    try:
        yield Distributed(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class GradientAllReduce:
    """All-reduce of one step's gradients and metrics, in one flat tensor; capturable.

    Args:
        distributed: the processes.
        gradients: tensors of the shapes, strides and device to be reduced.
        metrics: number of metrics that go with them.
    """

    def __init__(self, distributed: Distributed, gradients: Sequence[Tensor], metrics: int) -> None:
        self._distributed = distributed
        sizes = [g.numel() for g in gradients]
        # Aligned for vector loads.
        padded = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
        device, exact = gradients[0].device, any(g.dtype == torch.float64 for g in gradients)
        dtype = torch.float64 if exact else torch.float32
        self._flat = torch.zeros(sum(padded) + metrics + 1, dtype=dtype, device=device)
        parts = torch.split(self._flat, [*padded, metrics, 1])
        self._gradients = [
            part.as_strided(g.shape, g.stride()) for part, g in zip(parts, gradients, strict=False)
        ]
        self._metrics, self._rows = parts[-2:]

    def __call__(
        self, gradients: Sequence[Tensor], metrics: Tensor, non_finite_rows: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Sum the gradients, and average the metrics, over all processes.

        Args:
            gradients: this rank's share of the batch's, see `Distributed`.
            metrics: this rank's; any floating dtype.
            non_finite_rows: int32 (1,); becomes their number over all processes; flags stay.

        Returns:
            The sums of the gradients, fp32 at least, and the means of the metrics; overwritten
            by the next call.

        Raises:
            TrainingError: another rank is gone.
        """
        torch._foreach_copy_(self._gradients, list(gradients))
        torch.div(metrics, self._distributed.world_size, out=self._metrics)
        self._rows.copy_(non_finite_rows.bitwise_and(OVERFLOWED - 1))
        with reporting_lost_ranks():
            dist.all_reduce(self._flat)
        non_finite_rows.bitwise_and_(OVERFLOWED).add_(
            self._rows.clamp_(max=_MOST_ROWS).to(torch.int32)
        )
        return self._gradients, self._metrics
