"""What one iteration does and does not ask of the machine, counted."""

from collections import Counter
from typing import Any

import torch
from conftest import make_iteration
from torch.utils._python_dispatch import TorchDispatchMode

from fastinfogan.engine import Iteration
from fastinfogan.experiments import Experiment
from fastinfogan.philox import Stream


class Recorder(TorchDispatchMode):
    """Notes every operation with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.calls.append((func.overloadpacket.__name__, args))
        return func(*args, **(kwargs or {}))

    def count(self) -> Counter[str]:
        return Counter(name for name, _ in self.calls)


def recorded(iteration: Iteration, run: Any) -> Recorder:  # noqa: ANN401
    iteration.run(0)
    with Recorder() as recorder:
        run()
    return recorder


def test_nothing_is_read_back_from_the_device(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    seen = recorded(iteration, lambda: iteration.run(1)).count()
    assert seen["convolution"] > 0
    syncs = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")
    assert not [name for name in syncs if seen[name]]
    # The counter does see a read, and reading is what a log line does.
    assert recorded(iteration, iteration.sums[0].item).count()["_local_scalar_dense"] == 1


def test_the_g_step_computes_no_weight_gradient_of_the_trunk(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    networks = iteration.networks
    codes = iteration._draw(1, Stream.G_STEP)
    seen = recorded(iteration, lambda: iteration.g_step(codes))
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


def test_adam_is_one_operation_per_network_and_one_for_its_step_counters(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    seen = recorded(iteration, lambda: iteration.run(1)).count()
    assert seen["_fused_adam_"] == 2
    assert {n: c for n, c in seen.items() if n.startswith("_foreach")} == {"_foreach_add_": 2}


def test_convolutions_read_channels_last(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    seen = recorded(iteration, lambda: iteration.run(1))
    for name, arguments in seen.calls:
        if name == "convolution":
            image, weight = arguments[:2]
            assert image.is_contiguous(memory_format=torch.channels_last)
            assert weight.is_contiguous(memory_format=torch.channels_last)


def test_images_stay_uint8_until_they_are_gathered(tiny: Experiment) -> None:
    iteration = make_iteration(tiny)
    assert iteration._images.dtype == torch.uint8
    real = iteration.real_images(0)
    assert real.shape == (8, 1, 28, 28)
    expected = iteration._images[torch.from_numpy(iteration._order.indices(0))].float() / 255
    assert torch.equal(real.permute(0, 2, 3, 1), expected)
