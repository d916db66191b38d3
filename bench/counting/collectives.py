"""Collectives of one iteration, counted on any machine by one process.

The iteration runs on tensors without storage, as one process of a group that does not exist.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.counting.iteration import meta_iteration
from fastinfogan.distributed import SINGLE_PROCESS, Distributed
from fastinfogan.engine.config import BatchNorm
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.runtime.launch import nbytes, recording

Kind = Literal["all_reduce", "all_gather"]
_KINDS: dict[str, tuple[Kind, int]] = {
    "allreduce_": ("all_reduce", 0), "_allgather_base_": ("all_gather", 1),
}  # fmt: skip
"""By the operation of torch.distributed: its kind, and the position of its operand."""


@dataclass(frozen=True)
class Collective:
    """One collective.

    Attributes:
        kind: "all_reduce" or "all_gather".
        bytes: of each process's operand.
    """

    kind: Kind
    bytes: int


class _Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Collective] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func.namespace == "c10d":
            kind, place = _KINDS[func.overloadpacket.__name__]
            operand: Tensor | list[Tensor] = args[place]
            tensors = [operand] if isinstance(operand, Tensor) else operand
            self.found.append(Collective(kind, nbytes(*tensors)))
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_distributed(count: int) -> Iterator[Distributed]:
    """Join a process group that does not exist: what is sent is dropped.

    Raises:
        InputError: fewer than one, or this process is one of several that do exist.
    """
    if count < 1:
        raise InputError(f"`ranks` must be 1 or more, not {count}")
    if count == 1:
        yield SINGLE_PROCESS
        return
    if dist.is_initialized():
        raise InputError("collectives are counted by a process that is in no process group")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield Distributed(0, count)
    finally:
        dist.destroy_process_group()


def collectives(
    experiment: Experiment,
    precision: ComputedIn,
    count: int,
    batch_norm: BatchNorm = "synchronised",
) -> list[Collective]:
    """List the collectives of one iteration, in order.

    Args:
        experiment: its batch size is of all processes together.
        precision: of the networks.
        count: of processes; one has no collectives.
        batch_norm: by the statistics of the whole batch, or each process's.

    Raises:
        InputError: the batch cannot be shared equally, or this process is one of several.
    """
    arithmetic = PRECISIONS[precision].arithmetic()
    with fake_distributed(count) as distributed, recording(), torch.no_grad(), arithmetic:
        iteration = meta_iteration(experiment, precision, distributed, batch_norm)
        iteration.program()  # the first one makes tables
        recorder = _Collectives()
        with recorder:
            iteration.program()
    return recorder.found
