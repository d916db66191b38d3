"""Several processes that train one run: who this one is, and what they tell each other.

Started by torchrun. Every rank holds the whole set of images and all networks, draws its own rows
of the one batch, and adds its gradients to the others' in one flat sum a phase. So a batch gives
the same iteration however many ranks share it. Rank 0 alone writes.
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
"""Numbers, of which each gradient's place in the flat sum is a multiple."""
_MOST_ROWS = OVERFLOWED // 2
"""Beyond which rows that are not finite are no longer counted: flags stand above."""


@dataclass(frozen=True)
class Distributed:
    """This process among those that train.

    Attributes:
        rank: its number, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank prints, and writes the run directory."""
        return self.rank == 0

    def rows(self, batch_size: int) -> range:
        """This rank's rows of a batch.

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
        """With whom batch norm shares its statistics."""
        return "world" if synchronised and self.world_size > 1 else None

    def any_process(self, *flags: bool) -> list[bool]:
        """Which flags are set on any rank; waits for all of them.

        Raises:
            TrainingError: another rank is gone.
        """
        if self.world_size == 1:
            return list(flags)
        told = torch.tensor(flags, dtype=torch.int32)
        with reporting_lost_ranks():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return [bool(flag) for flag in told.tolist()]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Have rank 0 do something before the others do: what it makes, they find.

        Raises:
            TrainingError: another rank is gone.
        """
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def barrier(self) -> None:
        """Wait until every rank has come here.

        Raises:
            TrainingError: another rank is gone.
        """
        self.any_process(False)


SINGLE_PROCESS = Distributed()


def started_by_torchrun() -> bool:
    """Whether this process is one of several, by what torchrun leaves in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group(device_type: str) -> Iterator[Distributed]:
    """Join the processes that torchrun started, if it did.

    On GPUs each rank takes the one of its number on its node.

    Args:
        device_type: "cpu" or "cuda".

    Raises:
        InputError: they cannot be joined, or there are fewer GPUs than ranks.
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
        raise InputError(f"ranks cannot be joined: {error}") from error
    try:
        yield Distributed(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class GradientAllReduce:
    """One phase's gradients and measures, summed over all ranks in one flat collective; capturable.

    Args:
        distributed: the processes.
        gradients: tensors of the shapes, strides and device that will be shared.
        measures: how many numbers go with them.
    """

    def __init__(
        self, distributed: Distributed, gradients: Sequence[Tensor], measures: int
    ) -> None:
        self._distributed = distributed
        sizes = [g.numel() for g in gradients]
        # Every gradient begins where vectors load whole.
        padded = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
        device, exact = gradients[0].device, any(g.dtype == torch.float64 for g in gradients)
        dtype = torch.float64 if exact else torch.float32
        self._flat = torch.zeros(sum(padded) + measures + 1, dtype=dtype, device=device)
        parts = torch.split(self._flat, [*padded, measures, 1])
        self._gradients = [
            part.as_strided(g.shape, g.stride()) for part, g in zip(parts, gradients, strict=False)
        ]
        self._measures, self._rows = parts[-2:]

    def __call__(
        self, gradients: Sequence[Tensor], measures: Tensor, problems: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Share.

        Args:
            gradients: this rank's share of the batch's, see `Distributed`.
            measures: this rank's; any floating dtype.
            problems: int32 (1,): becomes every rank's rows that were not finite; flags stay.

        Returns:
            The sums of the gradients, fp32 at least, and the means of the measures; overwritten
            by the next call.

        Raises:
            TrainingError: another rank is gone.
        """
        torch._foreach_copy_(self._gradients, list(gradients))
        torch.div(measures, self._distributed.world_size, out=self._measures)
        self._rows.copy_(problems.bitwise_and(OVERFLOWED - 1))
        with reporting_lost_ranks():
            dist.all_reduce(self._flat)
        problems.bitwise_and_(OVERFLOWED).add_(self._rows.clamp_(max=_MOST_ROWS).to(torch.int32))
        return self._gradients, self._measures
