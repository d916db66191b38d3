"""What one iteration does and does not ask of the machine, counted."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastinfogan.engine import Iteration
from fastinfogan.engine.config import Information
from fastinfogan.errors import TrainingError
from fastinfogan.experiments import Experiment
from fastinfogan_kernels import _native
from fastinfogan_kernels.objective.metrics import TOO_MANY
from tests.helpers.training import make_iteration, watch_gradients


class Recorder(TorchDispatchMode):
    """Notes every operation with its arguments."""

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

    def count(self) -> Counter[str]:
        return Counter(name for name, _ in self.calls)


def recorded(iteration: Iteration, run: Any) -> Recorder:  # noqa: ANN401
    iteration.run(0)
    with Recorder() as recorder:
        run()
    return recorder


READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


def test_no_tensor_is_read_by_python(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way in which Python reads a tensor, counted; on a GPU each waits for the device."""
    iteration = make_iteration(tiny, augmentation="affine")
    without_adam(iteration)
    iteration.run(0)
    seen: Counter[str] = Counter()
    for name in READS:
        original = getattr(Tensor, name)

        def count(self: Tensor, *args: Any, name: str = name, original: Any = original) -> Any:  # noqa: ANN401
            seen[name] += 1
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, count)
    iteration.run(1)
    assert not seen
    iteration.read()
    assert seen["tolist"] == 2  # the step counts and the sums
    one = torch.ones((), dtype=torch.int64)
    assert (one.item(), bool(one), float(one), int(one), [0, 1][one]) == (1, True, 1.0, 1, 1)
    assert one.cpu().numpy() == 1
    assert set(seen) == set(READS)


def without_adam(iteration: Iteration) -> None:
    """Leave out what counts its steps on a CPU as a number, and on a GPU in its kernel."""
    iteration._d_update = iteration._g_update = lambda _: None  # type: ignore[assignment]


def test_nothing_is_read_back_from_the_device(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    without_adam(iteration)
    seen = recorded(iteration, lambda: iteration.run(1)).count()
    assert seen["convolution"] > 0
    syncs = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")
    assert not [name for name in syncs if seen[name]]
    # The counter does see a read, and reading is what a log line does.
    assert recorded(iteration, iteration.sums[0].item).count()["_local_scalar_dense"] == 1


def test_the_g_step_computes_no_weight_gradient_of_the_trunk(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    networks = iteration.networks
    seen = recorded(iteration, iteration.g_step)
    trunk = {
        tuple(block.layer.weight.shape) for block in networks.trunk if block.layer.weight.dim() == 4
    }
    of_trunk, of_generator = [], []
    for name, arguments in seen.calls:
        if name == "convolution_backward":
            weight, transposed, mask = arguments[2], arguments[7], arguments[10]
            assert transposed or tuple(weight.shape) in trunk
            (of_generator if transposed else of_trunk).append(mask[1])
    assert of_trunk == [False, False]
    assert of_generator == [True, True]


def test_the_g_step_computes_no_weight_gradient_of_the_trunks_linear_layer(
    tiny: Experiment,
) -> None:
    """By shape, which no other layer of these networks has either way round."""
    trunk = (*tiny.trunk[:-1], replace(tiny.trunk[-1], channels=96))
    iteration = make_iteration(replace(tiny, trunk=trunk))
    (weight,) = (p for p in iteration.networks.trunk.parameters() if 96 in p.shape and p.dim() == 2)
    assert sorted(weight.shape) == [96, 784]

    def made(seen: Recorder) -> list[Tensor]:
        own = weight.untyped_storage().data_ptr()
        return [
            t
            for t in seen.made
            if tuple(t.shape) in ((96, 784), (784, 96)) and t.untyped_storage().data_ptr() != own
        ]

    assert made(recorded(iteration, iteration.d_step))
    assert not made(recorded(iteration, iteration.g_step))


@pytest.mark.parametrize("information", ["maximise", "observe"])
def test_an_observing_q_tells_d_and_not_the_generator(
    tiny: Experiment, information: Information
) -> None:
    """Gradients at two lambdas: the D step's differ in both cases, the G step's with maximise."""

    def gradients(scale: float) -> dict[str, list[Tensor]]:
        scaled = replace(tiny, lambda_categorical=scale, lambda_continuous=scale)
        iteration = make_iteration(scaled, precision="fp64", information=information)
        first = {name: t.clone() for name, t in iteration.networks.state_dict().items()}
        seen: dict[str, list[Tensor]] = {}

        def keep(step: str, gradients: Sequence[Tensor]) -> None:
            seen[step] = [gradient.clone() for gradient in gradients]

        watch_gradients(iteration, keep)
        iteration.draw(0)
        iteration.d_step()
        iteration.networks.load_state_dict(first)  # the same for both G steps
        iteration.g_step()
        return seen

    one, other = gradients(0.5), gradients(2.0)

    def differ(step: str) -> bool:
        return not all(map(torch.equal, one[step], other[step]))

    assert differ("D")
    assert differ("G") == (information == "maximise")


def test_adam_is_one_call_per_network(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    iteration = make_iteration(tiny, precision="bf16")
    iteration.run(0)
    calls: list[Any] = []
    original = _native.adam
    monkeypatch.setattr(_native, "adam", lambda *given: (calls.append(given), original(*given)))
    iteration.run(1)
    networks = iteration.networks
    for call, named in zip(calls, (networks.d_parameters(), networks.g_parameters()), strict=True):
        assert {p.data_ptr() for p in call[0]} == {p.data_ptr() for _, p in named}


def test_weights_of_maps_are_rounded_once_and_their_gradients_stay_narrow(tiny: Experiment) -> None:
    """By Adam, in its own pass: nothing else casts a weight or a gradient of one."""
    iteration = make_iteration(tiny, precision="bf16")
    shapes = {tuple(p.shape) for p in iteration.networks.parameters() if p.dim() > 1}
    seen = recorded(iteration, lambda: iteration.run(1))
    casts = [
        tuple(arguments[0].shape)
        for name, arguments in seen.calls
        if name in ("_to_copy", "copy_") and tuple(arguments[0].shape) in shapes
    ]
    assert not casts
    copies = iteration.d_adam.working_copies | iteration.g_adam.working_copies
    for parameter, copy in copies.items():
        assert torch.equal(parameter.bfloat16(), copy)


def test_convolutions_read_channels_last(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    seen = recorded(iteration, lambda: iteration.run(1))
    for name, arguments in seen.calls:
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


def test_three_in_a_row_end_it(tiny: Experiment) -> None:
    iteration = make_iteration(tiny, precision="bf16")
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
