"""The likelihood's kernel against fp64: any mix of codes, odd batches, extremes, invalid data."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan.nn import QHeadLikelihood
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec
from fastinfogan_kernels.objective.code_layout import code_table, make_counters
from fastinfogan_kernels.objective.likelihood import (
    REDUCTIONS,
    likelihood_with_gradient,
    log_likelihood_op,
    q_head_log_likelihood,
)
from fastinfogan_kernels.runtime.launch import recording
from tests.helpers.specs import MIXED, WEIGHTS, Drawn, any_codes, assert_as_good, drawn, spec_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN in the kernels


def check(d: Drawn, device: torch.device, dtype: torch.dtype, **options: Any) -> None:  # noqa: ANN401
    output = d.output.to(device, dtype)
    codes = (d.classes.to(device), d.continuous.to(device), d.spec)
    truth = likelihood_with_gradient(output.double(), *codes, **options)
    baseline = likelihood_with_gradient(output, *codes, impl="reference", **options)
    actual = likelihood_with_gradient(output, *codes, impl="triton", **options)
    assert actual[0].dtype == torch.float32
    assert actual[1].dtype == dtype
    assert_as_good(actual[0], baseline[0], truth[0], 2e-6)
    assert_as_good(actual[1], baseline[1], truth[1], 2e-6 if dtype == torch.float32 else 1e-3)


def evaluate(d: Drawn, device: torch.device, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
    """Compute values and gradient by the kernel, or by `impl`."""
    inputs = (d.output.to(device), d.classes.to(device), d.continuous.to(device), d.spec)
    return likelihood_with_gradient(*inputs, **{"impl": "triton"} | options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [1, 7, 128, 301])
def test_mixed_codes(rows: int, reduction: str, device: torch.device, dtype: torch.dtype) -> None:
    check(drawn(MIXED, rows, spread=1.0), device, dtype, reduction=reduction, weights=WEIGHTS)


@settings(max_examples=15)
@given(any_codes(), st.integers(1, 40), st.integers(0, 2**31))
def test_any_mix_of_codes(device: torch.device, spec: LatentSpec, rows: int, seed: int) -> None:
    check(drawn(spec, rows, seed), device, torch.float32)


@pytest.mark.parametrize("classes", [2, 1000])
def test_smallest_and_largest_class_counts(classes: int, device: torch.device) -> None:
    check(drawn(spec_of(Categorical(classes)), 9), device, torch.float32)


def test_extremes_stay_finite_and_exact(device: torch.device) -> None:
    """Logits of +-1e4, deviations from 1e-6 to 1e6, and both sides of a clip."""
    spec = spec_of(Categorical(4), Continuous(), Continuous("clipped", (0.1, 2.0)))
    logits = torch.tensor([[1e4, -1e4, 0, 1], [-1e4, 1e4, 1e4, 0], [1e4, 1e4, 1e4, 1e4]])
    raw = torch.tensor([[math.log(1e-6), -3.0], [math.log(1e6), 0.7], [0.0, 0.0]])
    means = torch.tensor([[0.5, 0.1], [0.3, -1.0], [0.0, 0.0]])
    output = torch.cat([logits, means, raw], 1)
    codes = (torch.tensor([[1], [2], [0]]), torch.tensor([[0.50001, 0.2], [-0.7, 1.0], [0.0, 0.0]]))
    d = Drawn(spec, output, *codes)
    check(d, device, torch.float32, reduction="none")
    _, gradient = evaluate(d, device, reduction="none")
    clipped = gradient[:, -1]
    assert clipped[0] == 0.0  # exp(-3) < 0.1
    assert clipped[1] == 0.0  # exp(0.7) > 2
    assert clipped[2] == -1.0


def test_many_tiles_are_merged_and_leave_the_counters_zero(device: torch.device) -> None:
    d = drawn(MIXED, 300)
    counters = make_counters(MIXED, device)
    with recording(run=True) as launches:
        found = [evaluate(d, device, counters=counters) for _ in range(3)]
    assert all(launch.grid[0] > 8 and launch.parameters["MERGE"] for launch in launches)
    assert not counters.any()
    for values, gradient in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(gradient, found[0][1])


def test_invalid_classes_and_rows_are_counted_and_become_nan(device: torch.device) -> None:
    d = drawn(MIXED, 150)
    d.classes[5, 0], d.classes[7, 1], d.classes[7, 0] = 3, -1, 2**40
    d.output[9, 4], d.output[120, 2], d.output[120, -2] = math.nan, math.inf, -math.inf
    results = []
    for impl in ("triton", "reference"):
        counters = make_counters(MIXED, device)
        for _ in range(2):
            found = evaluate(d, device, reduction="none", counters=counters, impl=impl)
        assert counters.tolist() == [6, 4, 0, 0, 0, 0, 0]
        results.append(found)
    (values, gradient), (expected, expected_gradient) = results
    assert torch.equal(values.isnan(), expected.isnan())
    assert torch.equal(gradient.isnan(), expected_gradient.isnan())
    assert values[5, 0].isnan()
    assert gradient[5, :3].isnan().all()
    assert gradient[5, 3:].isfinite().all()
    good = [i for i in range(150) if i not in (5, 7, 9, 120)]
    torch.testing.assert_close(values[good], expected[good])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_first_and_second_derivatives(reduction: str, device: torch.device) -> None:
    """Backward multiplies the kernel's gradient by the upstream one; double backward is torch's."""
    d = drawn(MIXED, 40, spread=0.5)
    found = []
    for dtype, impl in ((torch.float64, "auto"), (torch.float32, "triton")):
        output = d.output.to(device, dtype).requires_grad_()
        codes = (d.classes.to(device), d.continuous.to(device, dtype), MIXED)
        values = q_head_log_likelihood(
            output, *codes, weights=WEIGHTS, reduction=reduction, impl=impl
        )
        upstream = torch.linspace(-1, 2, values.numel(), dtype=dtype, device=device)
        upstream = upstream.view(values.shape)
        (plain,) = torch.autograd.grad(values, output, upstream, retain_graph=True)
        (first,) = torch.autograd.grad(values, output, upstream, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), output)
        found.append([t.detach().double() for t in (plain, first, second)])
    for actual, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck(reduction: str, device: torch.device) -> None:
    d = drawn(MIXED, 5)
    table = code_table(MIXED, device)
    inputs = (t.to(device) for t in (d.output, d.classes, d.continuous))
    tables = (table.table, table.bounds, table.ones, make_counters(MIXED, device), table.widest)
    torch.library.opcheck(log_likelihood_op, (*inputs, *tables, reduction, "triton"))


def test_the_module_raises_at_once_on_cpu_and_counts_when_compiled(device: torch.device) -> None:
    module = QHeadLikelihood(MIXED, reduction="sum", weights=WEIGHTS, impl="triton").to(device)
    d = drawn(MIXED, 6)
    output, classes, continuous = (t.to(device) for t in (d.output, d.classes, d.continuous))
    invalid = classes.clone()
    invalid[2, 1] = 70
    if device.type == "cpu":
        with pytest.raises(InputError, match=r"row 2: class 70 of c2 is not in \[0, 70\)"):
            module(output, invalid, continuous)
    module.check()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert compiled(output, invalid, continuous)[1].isnan()
    with pytest.raises(InputError, match=r"since the last check 1 class ind.* and 0 rows"):
        module.check()
    module.check()
    expected = module(output, classes, continuous)
    torch.testing.assert_close(compiled(output, classes, continuous), expected)


def test_one_specialization_serves_every_experiment(device: torch.device) -> None:
    seen = set()
    for name in ("mnist", "svhn", "celeba"):
        d = drawn(experiments.get(name).latents, 128)
        with recording(run=False) as launches:
            evaluate(d, device)
        seen |= {tuple(sorted(launch.parameters.items())) for launch in launches}
    assert len(seen) == 1
