"""What one iteration does and does not compute, and iterations that are not finite."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastinfogan.engine import Iteration
from fastinfogan.engine.config import ComputedIn
from fastinfogan.errors import TrainingError
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.objective.metrics import TOO_MANY
from tests.helpers.training import make_iteration


class Recorder(TorchDispatchMode):
    """Records every operation, its arguments and what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.calls.append((func.overloadpacket.__name__, args))
        result = func(*args, **(kwargs or {}))
        every = result if isinstance(result, tuple | list) else (result,)
        self.made.extend(each for each in every if isinstance(each, Tensor))
        return result


def recorded(run: Callable[[], object]) -> Recorder:
    with Recorder() as recorder:
        run()
    return recorder


def test_the_g_step_computes_no_weight_gradient_of_the_trunk(tiny: Experiment) -> None:
    """By shapes that no other layer has."""
    trunk = tuple(
        replace(block, channels=channels)
        for block, channels in zip(tiny.trunk, (11, 19, 96), strict=True)
    )
    iteration = make_iteration(replace(tiny, trunk=trunk))
    weights = [p for p in iteration.networks.trunk.parameters() if p.dim() > 1]
    own = {p.untyped_storage().data_ptr() for p in weights}
    shapes = {tuple(sorted(p.shape)) for p in weights}
    assert len(shapes) == 3
    iteration.run(0)

    def made(run: Callable[[], object]) -> set[tuple[int, ...]]:
        tensors = [t for t in recorded(run).made if t.untyped_storage().data_ptr() not in own]
        return {tuple(sorted(t.shape)) for t in tensors} & shapes

    assert made(iteration.d_step) == shapes
    assert made(iteration.g_step) == set()


def test_convolutions_read_channels_last(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    iteration.run(0)
    for name, arguments in recorded(lambda: iteration.run(1)).calls:
        if name == "convolution":
            image, weight = arguments[:2]
            assert image.is_contiguous(memory_format=torch.channels_last)
            assert weight.is_contiguous(memory_format=torch.channels_last)


def spoil(iteration: Iteration) -> None:
    """Make what the G step's images are made of not finite."""
    with torch.no_grad():
        next(iter(iteration.g_adam.working_copies.values())).fill_(float("nan"))


def test_an_iteration_that_is_not_finite_is_skipped_and_counted(tiny: Experiment) -> None:
    iteration = make_iteration(tiny, precision="bf16")
    iteration.run(0)
    before = {name: t.clone() for name, t in iteration.state()["optimizer"].items()}
    weights = {k: p.detach().clone() for k, p in iteration.networks.named_parameters()}
    spoil(iteration)
    iteration.run(1)
    for name, tensor in iteration.state()["optimizer"].items():
        assert torch.equal(tensor, before[name]), name
    for name, parameter in iteration.networks.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert all(t.isfinite().all() for t in iteration.networks.state_dict().values())
    iteration.restored()
    iteration.run(2)
    line = iteration.read()
    assert line["skipped"] == 1
    assert all(math.isfinite(value) for value in line.values())
    assert iteration.read()["skipped"] == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_three_in_a_row_end_it(tiny: Experiment, precision: ComputedIn) -> None:
    """In fp16 too, where more iterations in a row may overflow."""
    iteration = make_iteration(tiny, precision=precision)
    spoil(iteration)
    for step in range(TOO_MANY):
        iteration.run(step)
    with pytest.raises(TrainingError, match=r"the last 3 iterations .* not finite"):
        iteration.read()


def test_two_in_a_row_and_a_good_one_do_not(tiny: Experiment) -> None:
    iteration = make_iteration(tiny, precision="bf16")
    for step in range(6):
        spoil(iteration)
        if step % 3 == 2:
            iteration.restored()
        iteration.run(step)
    assert iteration.read()["skipped"] == 4
