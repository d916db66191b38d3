"""Execution modes: eager, compiled by torch.compile, or replayed as CUDA graphs.

All run the same program and give the same numbers; they differ in what the host does.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, get_args

import torch

from fastinfogan.engine.iteration import Iteration
from fastinfogan.errors import InputError

ExecutionName = Literal["auto", "eager", "compiled", "graph"]
_PER_GRAPH = 10
"""Iterations of one replay, at the most."""


class Execution(ABC):
    """A way to run iterations.

    Args:
        iteration: what is run.

    Attributes:
        iterations_per_call: iterations that one call of `run` does without coming back to the host.
    """

    name: ClassVar[str]
    iterations_per_call: ClassVar[int] = 1

    def __init__(self, iteration: Iteration) -> None:
        self.iteration = iteration

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Do in advance what is better done while no other thread calls CUDA."""

    @abstractmethod
    def run(self, first: int, count: int) -> None:
        """Run iterations first, first + 1, ..., `count` of them."""


class EagerExecution(Execution):
    """Execution of one operation after the other."""

    name = "eager"

    def run(self, first: int, count: int) -> None:
        """See the base class."""
        for step in range(first, first + count):
            self.iteration.run(step)


class CompiledExecution(Execution):
    """The program that torch.compile makes of the whole iteration, one graph without a break."""

    name = "compiled"

    def __init__(self, iteration: Iteration) -> None:
        super().__init__(iteration)
        self._program = torch.compile(iteration.program, fullgraph=True, dynamic=False)

    def run(self, first: int, count: int) -> None:
        """See the base class."""
        self.iteration.counter.fill_(first)
        with torch.no_grad(), self.iteration.precision.arithmetic():
            for _ in range(count):
                self._program()
        self.iteration.count_batches(count)


class CudaGraphExecution(Execution):
    """Replay of CUDA graphs, of one iteration and of several.

    The program counts its own iterations on the device, so a replay needs nothing of the host. It
    is captured at the first run, after a warm-up whose traces are undone: launches compile kernels
    and fill tables of addresses, and train the networks, before they can be captured.
    """

    name = "graph"
    iterations_per_call = _PER_GRAPH

    def __init__(self, iteration: Iteration) -> None:
        super().__init__(iteration)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def prepare(self) -> None:
        """Capture."""
        if not self._graphs:
            with self.iteration.precision.arithmetic():
                self._capture()

    def run(self, first: int, count: int) -> None:
        """See the base class."""
        self.prepare()
        self.iteration.counter.fill_(first)
        self.iteration.count_batches(count)
        for size in sorted(self._graphs, reverse=True):
            for _ in range(count // size):
                self._graphs[size].replay()
            count %= size

    @torch.no_grad()
    def _capture(self) -> None:
        iteration = self.iteration
        state = [t for kind in iteration.state().values() for t in kind.values()]
        state.append(iteration.counter)
        before = [t.clone() for t in state]
        iteration.reserve(1 + _PER_GRAPH)
        stream = torch.cuda.Stream(iteration.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(iteration.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                iteration.program()
        torch.cuda.current_stream(iteration.device).wait_stream(stream)
        for size in (1, _PER_GRAPH):
            graph = torch.cuda.CUDAGraph()
            # Other threads, a decoder's for one, may call CUDA meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                for _ in range(size):
                    iteration.program()
            self._graphs[size] = graph
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        iteration.restored()


def choose_execution(
    name: ExecutionName, device: torch.device, world_size: int = 1
) -> tuple[type[Execution], str]:
    """Choose the execution mode for a device and a number of processes.

    Returns:
        The execution and, in a few words, why.

    Raises:
        InputError: no such execution, or it cannot work on this device.
    """
    if name not in get_args(ExecutionName):
        known = ", ".join(get_args(ExecutionName))
        raise InputError(f"no execution {name!r}; there are {known}")
    if name == "compiled" and world_size > 1:
        raise InputError(
            "`execution='compiled'`: torch.compile breaks the graph at collectives of several "
            "other; use eager, or graph on GPUs"
        )
    if name == "graph" and device.type != "cuda":
        raise InputError(f"`execution='graph'` replays CUDA graphs; this run is on {device.type}")
    if name == "auto":
        if device.type == "cuda":
            return CudaGraphExecution, "a GPU replays it with no host in the loop"
        return EagerExecution, "on a CPU launches cost nothing that another execution would save"
    executions: dict[str, type[Execution]] = {
        "eager": EagerExecution, "compiled": CompiledExecution, "graph": CudaGraphExecution,
    }  # fmt: skip
    return executions[name], "asked for"
