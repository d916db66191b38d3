"""The C++ kernels through their bindings, against torch in float64 and NumPy."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise
from fastinfogan_kernels.runtime.launch import native_available

if not native_available():
    pytest.skip("_native not compiled", allow_module_level=True)

from fastinfogan_kernels import _native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Half a unit in the last place of a stored result, and what float32 arithmetic adds.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ACTIVATIONS: dict[tuple[int, float], Callable[[Tensor], Tensor]] = {
    (0, 0.0): lambda z: z,
    (1, 0.0): F.relu,
    (1, 0.1): lambda z: F.leaky_relu(z, 0.1),
    (2, 0.0): torch.sigmoid,
    (3, 0.0): torch.tanh,
}
dtypes = pytest.mark.parametrize("dtype", DTYPES)
activations = pytest.mark.parametrize(("activation", "slope"), ACTIVATIONS)


@pytest.fixture(autouse=True, params=_native.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    best = _native.instruction_set()
    _native.use_instruction_set(request.param)
    assert _native.instruction_set() == request.param
    yield request.param
    _native.use_instruction_set(best)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (actual.double() - expected).abs() / expected.abs().clamp(min=1.0)
    assert actual.shape == expected.shape
    assert not (error > tolerance).any(), error.max()
    assert torch.equal(actual.isnan(), expected.isnan())


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@st.composite
def specs(draw: st.DrawFn) -> LatentSpec:
    noise = Noise(draw(st.integers(1, 70)), draw(st.sampled_from(("uniform", "normal"))))
    counts = draw(st.lists(st.integers(2, 1000) | st.just(10), max_size=4))
    deviations = draw(st.lists(st.sampled_from(("learned", "fixed", "clipped")), max_size=5))
    return LatentSpec(noise, (*map(Categorical, counts), *map(Continuous, deviations)))


def code_table(spec: LatentSpec) -> tuple[Tensor, Tensor]:
    rows = [
        (0, place.start, place.stop - place.start, i) for i, place in enumerate(spec.logit_slices)
    ]
    bounds = [(0.0, 0.0)] * len(rows)
    for i, code in enumerate(spec.continuous):
        kind = 2 if code.deviation == "fixed" else 1
        rows.append((kind, spec.mean_slice.start + i, spec.deviation_slice.start + i, i))
        clip = [math.log(bound) for bound in code.clip]
        bounds.append((clip[0], clip[1]) if code.deviation == "clipped" else (-math.inf, math.inf))
    table = torch.tensor(rows, dtype=torch.int32).reshape(len(rows), 4)
    return table, torch.tensor(bounds, dtype=torch.float32).reshape(len(rows), 2)


@dtypes
@settings(max_examples=15)
@given(spec=specs(), rows=st.integers(1, 40), step=st.integers(0, 2**32 - 1), data=st.data())
def test_codes_are_numpys_bit_for_bit(
    dtype: torch.dtype, spec: LatentSpec, rows: int, step: int, data: st.DataObject
) -> None:
    seed, first_row = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 2**31))
    written = torch.full((rows, spec.input_width), math.nan, dtype=dtype)
    classes = torch.full((rows, len(spec.categorical)), -1)
    continuous = zeros(rows, len(spec.continuous))
    counts = [code.classes for code in spec.categorical]
    _native.draw_codes(
        seed, step, 3, first_row, spec.noise.size, spec.noise.prior == "normal", counts,
        written, classes, continuous,
    )  # fmt: skip
    expected = spec.draw(seed, step, 3, rows, first_row=first_row)
    assert np.array_equal(classes.numpy(), expected.classes)
    assert np.array_equal(continuous.numpy(), expected.continuous)
    assert torch.equal(written, torch.from_numpy(spec.generator_input(expected)).to(dtype))


@dtypes
@settings(max_examples=15)
@given(spec=specs(), rows=st.integers(1, 70), size=st.sampled_from((1.0, 8.0, 1e4)))
def test_likelihood_is_torchs(dtype: torch.dtype, spec: LatentSpec, rows: int, size: float) -> None:
    n = len(spec.codes)
    output = torch.randn(rows, spec.output_width)
    output[:, : spec.mean_slice.start] *= size
    output = output.to(dtype)
    latents = spec.draw(1, 2, 3, rows)
    classes, continuous = torch.from_numpy(latents.classes), torch.from_numpy(latents.continuous)
    table, bounds = code_table(spec)
    scales, per_row, values = torch.rand(n) + 0.1, zeros(rows, n), zeros(n)
    gradient, counters = torch.full_like(output, math.nan), zeros(2, dtype=torch.int32)
    _native.q_head_log_likelihood(
        output, classes, continuous, table, bounds, scales, per_row, values, gradient, counters
    )
    exact = output.double().requires_grad_()
    means, raws = exact[:, spec.mean_slice], exact[:, spec.deviation_slice]
    logs = [
        exact[:, place].log_softmax(1).gather(1, classes[:, i : i + 1])[:, 0]
        for i, place in enumerate(spec.logit_slices)
    ]
    for i, code in enumerate(spec.continuous):
        low, high = bounds[len(logs)].double()
        deviation = (
            torch.ones(()) if code.deviation == "fixed" else raws[:, i].clamp(low, high).exp()
        )
        normal = torch.distributions.Normal(means[:, i], deviation)
        logs.append(normal.log_prob(continuous[:, i].double()))
    expected = torch.stack(logs, 1) if logs else exact[:, :0]
    (expected * scales).sum().backward()
    assert counters.tolist() == [0, 0]
    close(per_row, expected.detach(), 5e-6)
    close(values, expected.detach().mean(0), 5e-6)
    slopes = exact.grad if exact.grad is not None else torch.zeros_like(exact)
    close(gradient, slopes, TOLERANCE[dtype] + 5e-6)


def test_invalid_classes_and_rows_are_counted() -> None:
    spec = LatentSpec(Noise(1), (Categorical(3), Categorical(5), Continuous()))
    table, bounds = code_table(spec)
    output, classes = torch.randn(6, 10), torch.zeros(6, 2, dtype=torch.int64)
    classes[1, 0], classes[2, 1], classes[3] = 3, -1, 2**62
    output[4, 2], output[5, 9] = math.nan, math.inf
    per_row, gradient = zeros(6, 3), zeros(6, 10)
    counters = torch.tensor([10, 20], dtype=torch.int32)
    _native.q_head_log_likelihood(
        output, classes, zeros(6, 1), table, bounds, torch.ones(3), per_row, zeros(3), gradient,
        counters,
    )  # fmt: skip
    assert counters.tolist() == [14, 22]
    assert per_row[:4].isnan().tolist() == [
        [False, False, False], [True, False, False], [False, True, False], [True, True, False]
    ]  # fmt: skip
    assert gradient[1].isnan().tolist() == [True] * 3 + [False] * 7
    assert per_row[4].isnan().tolist() == [True, False, False]


@dtypes
@pytest.mark.parametrize("features", [1, 13, 1024])
@pytest.mark.parametrize("rows", [1, 20, 128])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_d_losses_are_torchs(dtype: torch.dtype, features: int, rows: int, size: float) -> None:
    targets = torch.tensor([1, 0], dtype=torch.int32)
    losses, counters = zeros(2), zeros(1, dtype=torch.int32)
    inputs = (torch.randn(2 * rows, features) * size).to(dtype)
    weight = torch.randn(features).to(dtype)
    logits, gradient = zeros(2 * rows), zeros(2 * rows)
    _native.d_head_objective(
        inputs, weight, torch.tensor([0.5]), targets, 0.5, logits, losses, gradient, counters
    )
    terms = inputs.double().abs() @ weight.double().abs()
    close(logits / terms, (inputs.double() @ weight.double() + 0.5) / terms, 1e-6)
    exact = logits.double().requires_grad_()
    expected = torch.stack([F.softplus(-exact[:rows]).mean(), F.softplus(exact[rows:]).mean()])
    (0.5 * expected.sum()).backward()
    assert exact.grad is not None
    close(losses, expected.detach(), 1e-6)
    close(gradient, exact.grad, TOLERANCE[torch.float32])
    assert counters.tolist() == [0]


def test_adam_is_torchs_for_a_thousand_steps(instruction_set: str) -> None:
    shapes = [(33, 17), (5,), (4, 3, 4, 4), ()]
    actual = [torch.randn(shape) for shape in shapes]
    actual[2] = actual[2].contiguous(memory_format=torch.channels_last)
    expected = [torch.nn.Parameter(p.clone(memory_format=torch.preserve_format)) for p in actual]
    state = [[torch.zeros_like(p) for p in actual] for _ in range(2)]
    copies = [None, *(torch.empty_like(p, dtype=torch.bfloat16) for p in actual[1:])]
    optimizer = torch.optim.Adam(expected, 1e-3, (0.5, 0.999))
    for step in range(1, 1001):
        gradients = [torch.randn_like(p) * (step % 7) for p in actual]
        for p, g in zip(expected, gradients, strict=True):
            p.grad = g
        optimizer.step()
        _native.adam(actual, gradients, *state, copies, 1e-3, 0.5, 0.999, 1e-8, float(step), 1.0)
    for p, q, copy in zip(actual, expected, copies, strict=True):
        close(p, q.detach().double(), 1e-6)
        assert copy is None or torch.equal(copy, p.bfloat16())


@dtypes
def test_adam_takes_low_precision_gradients_and_a_scale(dtype: torch.dtype) -> None:
    for scale in (1.0, 8.0, 3.0):
        p, g = torch.randn(1001), (torch.randn(1001) * scale).to(dtype)
        m, v, copy = torch.randn(1001), torch.rand(1001), torch.empty(1001, dtype=torch.float16)
        exact = [t.double() for t in (p, g / scale if dtype == torch.float32 else g, m, v)]
        exact[1] = g.double() / scale
        _native.adam([p], [g], [m], [v], [copy], 1e-2, 0.9, 0.99, 1e-3, 3.0, scale)
        expected_m = 0.9 * exact[2] + 0.1 * exact[1]
        expected_v = 0.99 * exact[3] + 0.01 * exact[1] ** 2
        root = (expected_v / (1 - 0.99**3)).sqrt() + 1e-3
        close(p, exact[0] - 1e-2 / (1 - 0.9**3) * expected_m / root, 1e-6)
        close(m, expected_m, 1e-6)
        close(v, expected_v, 1e-6)
        assert torch.equal(copy, p.half())


@dtypes
@activations
@pytest.mark.parametrize(
    ("images", "pixels", "channels", "groups"),
    [(4, 1, 1, 2), (6, 49, 24, 2), (3, 50, 3, 1), (130, 1, 67, 1), (4, 100, 300, 4)],
)
def test_norm_is_torchs(
    dtype: torch.dtype, activation: int, slope: float,
    images: int, pixels: int, channels: int, groups: int,
) -> None:  # fmt: skip
    y = (torch.randn(images, pixels, channels) + 0.5).to(dtype)
    dout = torch.randn(images, pixels, channels).to(dtype)
    gamma, beta = torch.randn(channels), torch.randn(channels)
    mean, rstd, variance = (zeros(groups, channels) for _ in range(3))
    out, dy, dgamma, dbeta = (
        torch.empty_like(y),
        torch.empty_like(y),
        zeros(channels),
        zeros(channels),
    )
    _native.norm_statistics(y, groups, mean, rstd, variance, 1e-5)
    scale = gamma * rstd
    shift = beta - mean * scale
    _native.norm_apply(y, scale, shift, activation, slope, out)
    _native.norm_gradient(
        dout, y, scale, shift, mean, rstd, gamma, activation, slope, dy, dgamma, dbeta
    )
    exact = y.double().view(groups, -1, channels).requires_grad_()
    weight, bias = gamma.double().requires_grad_(), beta.double().requires_grad_()
    expected_variance, expected_mean = torch.var_mean(exact, 1, correction=0, keepdim=True)
    z = (exact - expected_mean) * (expected_variance + 1e-5).rsqrt() * weight + bias
    act = ACTIVATIONS[activation, slope]
    # Where z rounds to the other side of 0, the derivative of ReLU is another one.
    sure = (z.detach().abs() > 1e-4) | (activation != 1)
    expected = act(z)
    expected.backward(torch.where(sure, dout.double().view_as(expected), 0.0))
    dout_sure = torch.where(sure.view_as(y), dout, 0.0).to(dtype)
    _native.norm_gradient(
        dout_sure, y, scale, shift, mean, rstd, gamma, activation, slope, dy, dgamma, dbeta
    )
    assert exact.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    close(mean, expected_mean.detach()[:, 0], 1e-6)
    close(variance, expected_variance.detach()[:, 0], 1e-5)
    steep = float((gamma.abs() * rstd).max())
    close(out.view_as(expected), expected.detach(), TOLERANCE[dtype] + 1e-5)
    close(dy.view_as(expected), exact.grad, TOLERANCE[dtype] + 2e-5 * (1 + steep))
    close(dgamma, weight.grad, 1e-4)
    close(dbeta, bias.grad, 1e-4)
    only = [zeros(channels), zeros(channels)]
    _native.norm_gradient(
        dout_sure, y, scale, shift, mean, rstd, gamma, activation, slope, None, *only
    )
    assert torch.equal(only[0], dgamma)
    assert torch.equal(only[1], dbeta)


def test_variance_survives_a_large_mean() -> None:
    y = (torch.randn(64, 196, 32) * 0.1 + 30.0).contiguous()
    mean, rstd, variance = (zeros(1, 32) for _ in range(3))
    _native.norm_statistics(y, 1, mean, rstd, variance, 0.0)
    expected = y.double().var((0, 1), correction=0)
    assert ((variance[0].double() - expected) / expected).abs().max() < 1e-5


@dtypes
@activations
@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 900, 1), (5, 33, 3), (7, 1, 100), (2, 3, 600)])
def test_activations_alone_are_torchs(
    dtype: torch.dtype, activation: int, slope: float, shape: tuple[int, int, int]
) -> None:
    z, dout = torch.randn(shape).to(dtype) * 2, torch.randn(shape).to(dtype)
    out, dz, dbias = torch.empty_like(z), torch.empty_like(z), zeros(shape[2])
    _native.norm_apply(z, None, None, activation, slope, out)
    exact = z.double().requires_grad_()
    expected = ACTIVATIONS[activation, slope](exact)
    expected.backward(dout.double())
    assert exact.grad is not None
    close(out, expected.detach(), TOLERANCE[dtype])
    _native.activation_gradient(dout, z, False, activation, slope, dz, dbias)
    close(dz, exact.grad, TOLERANCE[dtype])
    close(dbias, exact.grad.sum((0, 1)), 1e-4)
    _native.activation_gradient(dout, out, True, activation, slope, dout, None)  # in place
    close(dout, exact.grad, 8 * TOLERANCE[dtype])


def test_threads_are_torchs() -> None:
    before = torch.get_num_threads()
    y, seen = torch.randn(64, 100, 48), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert _native.threads() == count
            seen.append([zeros(2, 48) for _ in range(3)])
            _native.norm_statistics(y, 2, *seen[-1], 1e-5)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True))


def test_numpy_arrays_share_their_memory_too() -> None:
    mean, rstd, variance = (np.zeros((1, 1), np.float32) for _ in range(3))
    _native.norm_statistics(
        torch.tensor([[[1.0], [3.0]]]),
        1,
        mean,
        rstd,
        variance,
        0.0,  # type: ignore[arg-type]
    )
    assert (mean.item(), rstd.item(), variance.item()) == (2.0, 1.0, 1.0)
