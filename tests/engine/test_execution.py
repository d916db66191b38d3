"""Execution modes: all give the same numbers; which one is chosen."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from fastinfogan.engine.config import ComputedIn
from fastinfogan.engine.execution import (
    CompiledExecution,
    CudaGraphExecution,
    EagerExecution,
    Execution,
    choose_execution,
)
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from tests.helpers.training import make_iteration

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def left_by(kind: type[Execution], tiny: Experiment, **more: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    iteration = make_iteration(tiny, **more)
    if iteration.loss_scale:
        iteration.loss_scale.state[0] = 4096.0  # too large for the first iteration alone
        iteration.restored()
    execution = kind(iteration)
    execution.run(0, 2)
    execution.run(2, 1)
    return {n: t.clone() for kind in iteration.state().values() for n, t in kind.items()}


@pytest.mark.parametrize(
    "precision", ["fp32", *(pytest.param(p, marks=pytest.mark.slow) for p in ("bf16", "fp16"))]
)
def test_a_compiled_iteration_is_the_eager_one_to_the_last_bit(
    tiny: Experiment, precision: ComputedIn
) -> None:
    torch._dynamo.reset()
    counters.clear()
    more = {"precision": precision, "augmentation": "affine"}
    compiled = left_by(CompiledExecution, tiny, **more)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    eager = left_by(EagerExecution, tiny, **more)
    assert eager["tally"].tolist() == ([2, 1, 0] if precision == "fp16" else [3, 0, 0])
    assert eager.keys() == compiled.keys()
    for name, tensor in eager.items():
        assert torch.equal(tensor, compiled[name]), name


def test_nothing_is_compiled_anew_after_the_first_iteration(tiny: Experiment) -> None:
    torch._dynamo.reset()
    execution = CompiledExecution(make_iteration(tiny))
    execution.run(0, 1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        execution.run(1, 4)


class Replayed:
    """Stands in for a captured graph: counts its replays."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_graphs_of_several_iterations_are_replayed_first(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    execution = CudaGraphExecution(iteration)
    one, ten = Replayed(), Replayed()
    execution._graphs = {1: one, 10: ten}  # type: ignore[dict-item]
    execution.run(5, 23)
    assert (one.replays, ten.replays) == (3, 2)
    assert iteration.counter.item() == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_iteration_is_the_eager_one_to_the_last_bit(tiny: Experiment) -> None:
    more = {"precision": "bf16", "device": "cuda"}
    graph, eager = (left_by(kind, tiny, **more) for kind in (CudaGraphExecution, EagerExecution))
    for name, tensor in eager.items():
        assert torch.equal(tensor, graph[name]), name


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", CPU, EagerExecution),
        ("auto", CUDA, CudaGraphExecution),
        ("eager", CUDA, EagerExecution),
        ("compiled", CPU, CompiledExecution),
        ("graph", CUDA, CudaGraphExecution),
    ],
)
def test_the_choice(name: Any, device: torch.device, expected: type[Execution]) -> None:  # noqa: ANN401
    chosen, why = choose_execution(name, device)
    assert chosen is expected
    assert why


def test_what_cannot_work_says_why() -> None:
    with pytest.raises(InputError, match="`execution='graph'` replays CUDA graphs; this"):
        choose_execution("graph", CPU)
    with pytest.raises(InputError, match="no execution 'fast'"):
        choose_execution("fast", CPU)  # type: ignore[arg-type]
