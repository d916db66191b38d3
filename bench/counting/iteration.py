"""What one iteration asks of a GPU, counted from the program itself, on any machine.

The iteration runs on tensors without storage: each launch is recorded with its bytes instead of
run. A number that the host reads from the device is a wait; inside an operation it is an error.
One rank of several is counted as a process of a group that does not exist.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.training import train_config
from fastinfogan.distributed import SINGLE_PROCESS, Distributed
from fastinfogan.engine.config import PRECISIONS, BatchNorm, ComputedIn
from fastinfogan.engine.iteration import Iteration
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.runtime.launch import nbytes, recording

_META = torch.device("meta")
_FREE = ("empty", "view", "slice", "select", "expand", "alias", "detach", "as_strided", "permute")
"""Beginnings of ATen operations that launch nothing."""
_READS = {"_local_scalar_dense": 0, "is_nonzero": False, "equal": False}
"""ATen operations by which the host reads the device, and their result here."""
_ADAM = 7
"""Moments, parameter and gradient read, moments and parameter written: values of a parameter."""


_COLLECTIVES: dict[str, tuple[Literal["all_reduce", "all_gather"], int]] = {
    "allreduce_": ("all_reduce", 0), "_allgather_base_": ("all_gather", 1),
}  # fmt: skip
"""By the operation of torch.distributed: its kind, and the position of its operand."""


@dataclass(frozen=True)
class Collective:
    """A collective, and the bytes of each rank's operand."""

    kind: Literal["all_reduce", "all_gather"]
    bytes: int


@dataclass(frozen=True)
class Counts:
    """One iteration, D step and G step.

    Attributes:
        experiment: its name.
        batch_size: real and generated images in a step, of this rank.
        precision: "bf16", "fp32", "tf32" or "fp16".
        launches: of all kernels, fastinfogan's and ATen's.
        kernels: launches by kernel.
        bytes: read and written by all launches, each operand and result of a launch once.
        bytes_minimum: each operand and result of each product once, and what Adam reads and writes.
        flops: of the products, two for a multiplication with its addition.
        host_syncs: how often the host waits for the device.
        allocations: tensors made in an iteration after the first, in eager mode; a replayed graph
            makes none.
        collectives: in order.
    """

    experiment: str
    batch_size: int
    precision: str
    launches: int
    kernels: dict[str, int]
    bytes: int
    bytes_minimum: int
    flops: int
    host_syncs: int
    allocations: int
    collectives: tuple[Collective, ...] = ()


@contextmanager
def allocations_recorded() -> Iterator[list[str]]:
    """Record the tensors that Python makes, in operations too, where no dispatch mode sees them."""
    found: list[str] = []

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            found.append(function.__name__)
            return function(*args, **kwargs)

        return make

    with ExitStack() as stack:
        for owner, names in (
            (torch, ("empty", "empty_like", "zeros", "zeros_like", "ones")),
            (Tensor, ("new_empty", "new_zeros", "new_ones")),
        ):
            for name in names:
                replacement = recorded(getattr(owner, name))
                stack.enter_context(patch.object(owner, name, replacement))
        yield found


class _Aten(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Recorder of ATen's operations that launch a kernel or make the host wait, and messages."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launched: Counter[str] = Counter()
        self.bytes = 0
        self.waits = 0
        self.collectives: list[Collective] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        name = func.overloadpacket.__name__
        if name in _READS:
            self.waits += 1
            return _READS[name]
        if func.namespace == "c10d":
            kind, position = _COLLECTIVES[name]
            operand: Tensor | list[Tensor] = args[position]
            tensors = [operand] if isinstance(operand, Tensor) else operand
            self.collectives.append(Collective(kind, nbytes(*tensors)))
        result = func(*args, **(kwargs or {}))
        free = func.is_view or name.startswith((*_FREE, "new_empty", "unsqueeze"))
        if func.namespace == "aten" and not free:
            self.launched[f"aten::{name}"] += 1
            self.bytes += nbytes(*(a for a in (*args, result) if isinstance(a, Tensor)))
        return result


@contextmanager
def _fake_distributed(ranks: int) -> Iterator[Distributed]:
    """Join a process group that does not exist: what is sent is dropped."""
    if ranks < 1:
        raise InputError(f"`ranks` must be 1 or more, not {ranks}")
    if ranks == 1:
        yield SINGLE_PROCESS
        return
    if dist.is_initialized():
        raise InputError("collectives are counted by a process that is in no process group")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield Distributed(0, ranks)
    finally:
        dist.destroy_process_group()


def count(
    experiment: Experiment,
    precision: ComputedIn = "bf16",
    ranks: int = 1,
    batch_norm: BatchNorm = "synchronised",
) -> Counts:
    """Count one iteration, of one rank if there are several.

    Args:
        experiment: with its batch size, of all ranks together.
        precision: "bf16", "fp32", "tf32" or "fp16", which also checks for overflows.
        ranks: that share the batch.
        batch_norm: of several ranks: by the statistics of the whole batch, or each rank's.

    Raises:
        InputError: the batch cannot be shared equally, or this process is one of several.
    """
    with _fake_distributed(ranks) as distributed:
        return _count(experiment, precision, distributed, batch_norm)


def _count(
    experiment: Experiment, precision: ComputedIn, distributed: Distributed, batch_norm: BatchNorm
) -> Counts:
    with recording() as launches, PRECISIONS[precision].arithmetic():
        iteration = meta_iteration(experiment, precision, distributed, batch_norm)
        with torch.no_grad():
            with _Aten():
                iteration.program()  # the first one makes tables
            launches.clear()
            with _Aten() as aten:
                iteration.program()
    with recording(), torch.no_grad(), _Aten():
        iteration.run(0)  # the workspace is laid out
        with allocations_recorded() as makers:
            iteration.run(1)
    with FlopCounterMode(display=False) as flops, _Aten(), torch.no_grad():
        meta_iteration(replace(experiment, batch_size=len(iteration.rows)), precision).run(0)
    kernels = Counter(launch.name.removesuffix("_kernel") for launch in launches)
    return Counts(
        experiment.name,
        len(iteration.rows),
        precision,
        len(launches) + aten.launched.total(),
        dict((kernels + aten.launched).most_common()),
        sum(launch.read + launch.written for launch in launches) + aten.bytes,
        _minimum(iteration),
        flops.get_total_flops(),
        aten.waits,
        len(makers),
        tuple(aten.collectives),
    )


def meta_iteration(
    experiment: Experiment,
    precision: ComputedIn,
    distributed: Distributed = SINGLE_PROCESS,
    batch_norm: BatchNorm = "synchronised",
) -> Iteration:
    """Make an iteration on tensors without storage, to run while launches are recorded."""
    e = experiment
    config = train_config(e, precision, batch_norm=batch_norm, ranks=distributed.world_size)
    with _META:
        images = torch.empty((e.batch_size, e.height, e.width, e.channels), dtype=torch.uint8)
        return Iteration.create(e, config, images, _META, distributed=distributed)


def _minimum(iteration: Iteration) -> int:
    total = 0
    for step in iteration.steps:
        d_step = step.trunk.trained
        bottom = step.trunk if d_step else step.generator
        for network in vars(step).values():
            passed_by = d_step and network is step.generator  # it only makes images
            for i, moved in enumerate(network.operand_bytes):
                # Forward; the weight's gradient of x and dy; the input's of dy and the weight.
                gradient = not passed_by and not (network is bottom and i == 0)
                total += (1 + network.trained + gradient) * sum(moved)
    for adam in (iteration.d_adam, iteration.g_adam):
        for parameter in adam.param_groups[0]["params"]:
            copy = adam.working_copies.get(parameter)
            total += _ADAM * nbytes(parameter)
            if copy is not None:  # the gradient has its dtype
                total += 2 * nbytes(copy) - nbytes(parameter)
    return total
