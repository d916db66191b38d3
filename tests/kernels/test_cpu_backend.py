"""The CPU's block epilogue in C++: batch norm and activation, against fp64 and against torch."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.accuracy import check_accuracy, check_same_bits
from fastinfogan_kernels.conv_block import cpu_backend
from fastinfogan_kernels.conv_block.deferred import ACTIVATIONS
from fastinfogan_kernels.runtime.launch import KERNEL_DTYPES

by_every_instruction_set = pytest.mark.usefixtures("native")

DTYPES = (torch.float64, *KERNEL_DTYPES)
SHAPES = {
    "feature map": (6, 5, 3, 37),
    "row": (10, 1, 1, 133),
    "5 channels": (8, 1, 2, 5),
    "1 channel": (4, 7, 7, 1),
    "wide": (4, 4, 5, 300),
}
ACTIVATED = (
    ("leaky_relu", 0.1),
    ("leaky_relu", 0.0),
    ("none", 1.0),
    ("sigmoid", 1.0),
    ("tanh", 1.0),
)


Found = dict[str, Tensor]


def made(shape: tuple[int, ...], seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn * scale + shift


def act(z: Tensor, activation: str, slope: float) -> Tensor:
    if activation == "leaky_relu":
        return F.leaky_relu(z, slope)
    return {"none": z, "sigmoid": z.sigmoid(), "tanh": z.tanh()}[activation]


def by_torch(y: Tensor, groups: int, activation: str, slope: float) -> Found:
    """Forward and backward by torch, in y's dtype with parameters in fp32, or all in fp64."""
    wide = torch.promote_types(y.dtype, torch.float32)
    gamma, beta, *running = parameters(y.shape[3], wide)
    leaf = y.clone().requires_grad_()
    parts = [
        F.batch_norm(part, *running, gamma, beta, True, 0.1, 1e-5)
        for part in leaf.permute(0, 3, 1, 2).chunk(groups)
    ]
    out = act(torch.cat(parts).permute(0, 2, 3, 1), activation, slope)
    out.backward(made(tuple(y.shape), 5).to(y.dtype))
    return found(out, leaf.grad, gamma.grad, beta.grad, *running)


def by_epilogue(y: Tensor, groups: int, activation: str, slope: float) -> Found:
    wide = torch.promote_types(y.dtype, torch.float32)
    gamma, beta, *running = (t.detach() for t in parameters(y.shape[3], wide))
    out, params = cpu_backend.norm_activation(
        y, gamma, beta, *running, groups, 0.1, 1e-5, activation, slope
    )
    dout = made(tuple(y.shape), 5).to(y.dtype)
    gradients = cpu_backend.norm_activation_gradient(dout, y, params, gamma, activation, slope)
    assert out.dtype == gradients[0].dtype == y.dtype
    return found(out, *gradients, *running)


def parameters(features: int, dtype: torch.dtype) -> list[Tensor]:
    """Gamma, beta, running mean and variance."""
    return [
        (1 + 0.2 * made((features,), 1)).to(dtype).requires_grad_(),
        (0.3 * made((features,), 2)).to(dtype).requires_grad_(),
        made((features,), 3).to(dtype),
        made((features,), 4).abs().to(dtype),
    ]


def found(*values: Tensor | None) -> Found:
    names = ("out", "dy", "dgamma", "dbeta", "running mean", "running var")
    pairs = zip(names, values, strict=True)
    return {name: value.detach() for name, value in pairs if value is not None}


@by_every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("activation", "slope"), ACTIVATED)
def test_norm_activation_against_fp64(
    dtype: torch.dtype, shape: tuple[int, ...], groups: int, activation: str, slope: float
) -> None:
    y = made(shape, 0, 2.0, 0.5).to(dtype)
    actual, baseline = (run(y, groups, activation, slope) for run in (by_epilogue, by_torch))
    check_accuracy(actual, baseline, by_torch(y.double(), groups, activation, slope), dtype)


@by_every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "slope"), ACTIVATED)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_activation_alone(
    dtype: torch.dtype, name: str, slope: float, shape: tuple[int, ...]
) -> None:
    y, dout = made(shape, 0, 3.0).to(dtype), made(shape, 1).to(dtype)
    results = []
    for drawn, given in ((y, dout), (y.double(), dout.double())):
        leaf = drawn.clone().requires_grad_()
        out = act(leaf, name, slope)
        out.backward(given)
        assert leaf.grad is not None
        dbias = leaf.grad.double().sum((0, 1, 2))
        results.append({"out": out.detach(), "dy": leaf.grad, "dbias": dbias})
    out = y.clone()
    cpu_backend.activation_(out, name, slope)
    wide = torch.promote_types(dtype, torch.float32)
    dy, dbias = cpu_backend.activation_gradient(
        dout, out, name, slope, torch.zeros(shape[3], dtype=wide)
    )
    check_accuracy({"out": out, "dy": dy, "dbias": dbias}, *results, dtype)
    assert cpu_backend.activation_gradient(dout, out, name, slope, None)[1].numel() == 0


@by_every_instruction_set
@pytest.mark.parametrize("mean", [300.0, -300.0])
def test_a_mean_300_times_the_deviation(mean: float) -> None:
    y = made((8, 16, 16, 20), 0, 1.0, mean).float()
    actual, truth = by_epilogue(y, 2, "leaky_relu", 0.1), by_torch(y.double(), 2, "leaky_relu", 0.1)
    # y has 24 bits, 8 of which the mean takes
    for name, tolerance in (("running var", 1e-5), ("out", 1e-4)):
        assert (actual[name] - truth[name]).norm() < tolerance * truth[name].norm()


@by_every_instruction_set
def test_a_constant_channel_gives_beta_and_no_gradient() -> None:
    y, beta = torch.full((4, 5, 5, 3), 7.0), torch.tensor([0.5, -2.0, 0.0])
    gamma = torch.ones(3)
    out, params = cpu_backend.norm_activation(y, gamma, beta, None, None, 1, 0.1, 1e-5, "none", 1.0)
    torch.testing.assert_close(out, beta.expand_as(out), rtol=0, atol=1e-4)
    dy, _, _ = cpu_backend.norm_activation_gradient(
        torch.ones_like(y), y, params, gamma, "none", 1.0
    )
    assert dy.abs().max() < 1e-3


@by_every_instruction_set
def test_nan_in_nan_out_of_its_channel_alone() -> None:
    y = made((4, 3, 3, 6), 0).float()
    y[1, 0, 1, 2] = float("nan")
    ones = torch.ones(6)
    out, _ = cpu_backend.norm_activation(y, ones, ones, None, None, 1, 0.1, 1e-5, "leaky_relu", 0.1)
    assert out[..., 2].isnan().all()
    assert out[..., [0, 1, 3, 4, 5]].isfinite().all()


@by_every_instruction_set
def test_threads_change_no_bit() -> None:
    y = made((64, 14, 14, 64), 0).float()
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(by_epilogue(y, 2, "leaky_relu", 0.1))
    check_same_bits(runs[1], runs[0])
    check_same_bits(runs[2], runs[0])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_opcheck(name: str) -> None:
    y, gamma, beta = made((4, 3, 3, 6), 0).float(), torch.ones(6), torch.zeros(6)
    forward = (y, gamma, beta, torch.zeros(6), torch.ones(6), 2, 0.1, 1e-5, name, 0.1)
    torch.library.opcheck(cpu_backend.norm_activation, forward)
    out, params = cpu_backend.norm_activation(y, gamma, beta, None, None, 2, 0.1, 1e-5, name, 0.1)
    torch.library.opcheck(cpu_backend.norm_activation_gradient, (out, y, params, gamma, name, 0.1))
    torch.library.opcheck(cpu_backend.activation_, (y.clone(), name, 0.1))
    for bias in (None, beta):
        torch.library.opcheck(cpu_backend.activation_gradient, (out, out, name, 0.1, bias))
