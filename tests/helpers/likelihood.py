"""Checks of the likelihood that every implementation passes, on any device."""

import math
from typing import Any

import torch

from fastinfogan_kernels.latents import Categorical, Continuous
from fastinfogan_kernels.objective.code_layout import make_counters
from fastinfogan_kernels.objective.likelihood import (
    Reduction,
    likelihood_with_gradient,
    q_head_log_likelihood,
)
from fastinfogan_kernels.runtime.launch import Implementation
from tests.helpers.specs import MIXED, WEIGHTS, Drawn, assert_as_good, drawn, spec_of

CPU = torch.device("cpu")


def evaluate(
    d: Drawn,
    impl: Implementation,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    **options: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute values and gradient; the codes are fp32, or fp64 as the output is."""
    wide = torch.promote_types(dtype, torch.float32)
    codes = (d.classes.to(device), d.continuous.to(device, wide))
    return likelihood_with_gradient(
        d.output.to(device, dtype), *codes, d.spec, impl=impl, **options
    )


def check_likelihood(
    d: Drawn,
    impl: Implementation,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    **options: Any,  # noqa: ANN401
) -> None:
    """Compare values and gradient with fp64, and torch's in the same dtype with fp64."""
    rounded = Drawn(d.spec, d.output.to(dtype), d.classes, d.continuous)
    counters = make_counters(d.spec, device)
    truth = evaluate(rounded, "reference", device, torch.float64, **options)
    baseline = evaluate(rounded, "reference", device, dtype, **options)
    actual = evaluate(rounded, impl, device, dtype, counters=counters, **options)
    assert not counters.any()
    assert (actual[0].dtype, actual[1].dtype) == (torch.float32, dtype)
    assert_as_good(actual[0], baseline[0], truth[0], 2e-6)
    assert_as_good(actual[1], baseline[1], truth[1], 2e-6 if dtype == torch.float32 else 1e-3)


def check_extremes(impl: Implementation, device: torch.device = CPU) -> None:
    """Logits of +-1e4, deviations from 1e-6 to 1e6, and both sides of a clip."""
    spec = spec_of(Categorical(4), Continuous(), Continuous("clipped", (0.1, 2.0)))
    logits = torch.tensor([[1e4, -1e4, 0, 1], [-1e4, 1e4, 1e4, 0], [1e4, 1e4, 1e4, 1e4]])
    raw = torch.tensor([[math.log(1e-6), -3.0], [math.log(1e6), 0.7], [0.0, 0.0]])
    means = torch.tensor([[0.5, 0.1], [0.3, -1.0], [0.0, 0.0]])
    codes = (torch.tensor([[1], [2], [0]]), torch.tensor([[0.50001, 0.2], [-0.7, 1.0], [0.0, 0.0]]))
    d = Drawn(spec, torch.cat([logits, means, raw], 1), *codes)
    check_likelihood(d, impl, device, reduction="none")
    values, gradient = evaluate(d, impl, device, reduction="none")
    assert values[0, 0] == -2e4
    assert gradient[0, -2] > 50
    assert gradient[:, -1].tolist() == [0.0, 0.0, -1.0]  # exp(-3) < 0.1, exp(0.7) > 2


def check_invalid_data(impl: Implementation, device: torch.device = CPU) -> None:
    """Invalid classes and rows are counted and become NaN, in their codes alone."""
    d = drawn(MIXED, 150)
    d.classes[5, 0], d.classes[7, 1], d.classes[7, 0] = 3, -1, 2**40
    d.output[9, 4], d.output[120, 2], d.output[120, -2] = math.nan, math.inf, -math.inf
    counters = make_counters(MIXED, device)
    for _ in range(2):
        values, gradient = evaluate(d, impl, device, reduction="none", counters=counters)
    assert counters.tolist() == [6, 4, 0, 0, 0, 0, 0]
    expected, expected_gradient = evaluate(d, "reference", device, reduction="none")
    assert torch.equal(values.isnan(), expected.isnan())
    assert torch.equal(gradient.isnan(), expected_gradient.isnan())
    assert values[5].isnan().tolist() == [True, False, False, False, False]
    assert gradient[5, :3].isnan().all()
    assert gradient[5, 3:].isfinite().all()
    good = [i for i in range(150) if i not in (5, 7, 9, 120)]
    torch.testing.assert_close(values[good], expected[good])


def check_derivatives(
    impl: Implementation, reduction: Reduction, device: torch.device = CPU
) -> None:
    """Backward multiplies the saved gradient by the upstream one; double backward is torch's."""
    d = drawn(MIXED, 40, spread=0.5)
    found = []
    for dtype, by in ((torch.float64, "reference"), (torch.float32, impl)):
        output = d.output.to(device, dtype).requires_grad_()
        codes = (d.classes.to(device), d.continuous.to(device, dtype), MIXED)
        values = q_head_log_likelihood(
            output, *codes, weights=WEIGHTS, reduction=reduction, impl=by
        )
        upstream = torch.linspace(-1, 2, values.numel(), dtype=dtype, device=device)
        upstream = upstream.view(values.shape)
        (plain,) = torch.autograd.grad(values, output, upstream, retain_graph=True)
        (first,) = torch.autograd.grad(values, output, upstream, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), output)
        found.append([t.detach().double() for t in (plain, first, second)])
    for actual, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
