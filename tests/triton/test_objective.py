"""The likelihood's kernel against fp64: any mix of codes, odd batches, extremes, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan.nn import QHeadLikelihood
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec
from fastinfogan_kernels.objective.code_layout import code_table
from fastinfogan_kernels.objective.likelihood import (
    REDUCTIONS,
    evaluate,
    likelihood_with_gradient,
    q_head_log_likelihood,
)
from fastinfogan_kernels.objective.targets import counters
from fastinfogan_kernels.runtime.launch import recording
from tests.helpers.specs import Drawn, any_codes, assert_as_good, drawn, spec_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN in the kernels

MIXED = spec_of(
    Categorical(3),
    Categorical(70),
    Continuous(),
    Continuous("fixed"),
    Continuous("clipped", (0.5, 2.0)),
)
WEIGHTS = (1.0, 2.0, 0.5, 0.1, 10.0)


def check(d: Drawn, reduction: str, dtype: torch.dtype, weights: tuple[float, ...] | None) -> None:
    given_output = d.output.to(dtype)
    arguments = {"weights": weights, "reduction": reduction}
    truth = likelihood_with_gradient(
        given_output.double(), d.classes, d.continuous.double(), d.spec, **arguments
    )
    theirs = likelihood_with_gradient(
        given_output, d.classes, d.continuous, d.spec, impl="reference", **arguments
    )
    ours = likelihood_with_gradient(
        given_output, d.classes, d.continuous, d.spec, impl="triton", **arguments
    )
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == dtype
    assert_as_good(ours[0], theirs[0], truth[0], 2e-6)
    assert_as_good(ours[1], theirs[1], truth[1], 2e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [1, 7, 128, 301])
def test_mixed_codes(rows: int, reduction: str, dtype: torch.dtype) -> None:
    check(drawn(MIXED, rows, spread=1.0), reduction, dtype, WEIGHTS)


@settings(max_examples=25)
@given(any_codes(), st.integers(1, 40), st.integers(0, 2**31))
def test_any_mix_of_codes(spec: LatentSpec, rows: int, seed: int) -> None:
    check(drawn(spec, rows, seed), "mean", torch.float32, None)


@pytest.mark.parametrize("classes", [2, 1000])
def test_smallest_and_largest_class_counts(classes: int) -> None:
    check(drawn(spec_of(Categorical(classes)), 9), "mean", torch.float32, None)


def test_extremes_stay_finite_and_exact() -> None:
    """Logits of +-1e4, deviations from 1e-6 to 1e6, and both sides of a clip."""
    spec = spec_of(Categorical(4), Continuous(), Continuous("clipped", (0.1, 2.0)))
    logits = torch.tensor([[1e4, -1e4, 0, 1], [-1e4, 1e4, 1e4, 0], [1e4, 1e4, 1e4, 1e4]])
    raw = torch.tensor([[math.log(1e-6), -3.0], [math.log(1e6), 0.7], [0.0, 0.0]])
    means = torch.tensor([[0.5, 0.1], [0.3, -1.0], [0.0, 0.0]])
    output = torch.cat([logits, means, raw], 1)
    codes = (torch.tensor([[1], [2], [0]]), torch.tensor([[0.50001, 0.2], [-0.7, 1.0], [0.0, 0.0]]))
    d = Drawn(spec, output, *codes)
    check(d, "none", torch.float32, None)
    _, gradient = likelihood_with_gradient(output, *codes, spec, reduction="none", impl="triton")
    clipped = gradient[:, -1]
    assert clipped[0] == 0.0  # exp(-3) < 0.1
    assert clipped[1] == 0.0  # exp(0.7) > 2
    assert clipped[2] == -1.0


def test_the_same_counters_serve_again_and_again() -> None:
    """Many tiles of rows, so that the last program merges, and puts its ticket back."""
    d = drawn(MIXED, 300)
    counted = counters(MIXED)
    found = [
        likelihood_with_gradient(
            d.output, d.classes, d.continuous, MIXED, counted=counted, impl="triton"
        )
        for _ in range(3)
    ]
    assert torch.equal(counted, torch.zeros_like(counted))
    for values, gradient in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(gradient, found[0][1])


def test_the_merge_is_used() -> None:
    d = drawn(MIXED, 300)
    with recording(run=True) as launches:
        likelihood_with_gradient(d.output, d.classes, d.continuous, MIXED, impl="triton")
    (only,) = launches
    assert only.grid[0] > 8
    assert only.parameters["MERGE"]


def test_bad_classes_and_rows_are_counted_and_make_nan() -> None:
    d = drawn(MIXED, 150)
    classes, output = d.classes.clone(), d.output.clone()
    classes[5, 0], classes[7, 1], classes[7, 0] = 3, -1, 2**40
    output[9, 4], output[120, 2], output[120, -2] = math.nan, math.inf, -math.inf
    counted = [counters(MIXED) for _ in range(2)]
    results = []
    for to, impl in zip(counted, ("triton", "reference"), strict=True):
        for _ in range(2):
            found = likelihood_with_gradient(
                output, classes, d.continuous, MIXED, reduction="none", counted=to, impl=impl
            )
        results.append(found)
    (values, gradient), (their_values, their_gradient) = results
    assert counted[0].tolist() == counted[1].tolist() == [6, 4, 0, 0, 0, 0, 0]
    assert torch.equal(values.isnan(), their_values.isnan())
    assert torch.equal(gradient.isnan(), their_gradient.isnan())
    assert values[5, 0].isnan()
    assert gradient[5, :3].isnan().all()
    assert gradient[5, 3:].isfinite().all()
    good = [i for i in range(150) if i not in (5, 7, 9, 120)]
    torch.testing.assert_close(values[good], their_values[good])


def test_backward_is_the_upstream_gradient_times_ours() -> None:
    d = drawn(MIXED, 40)
    for reduction in REDUCTIONS:
        grads = []
        for dtype, impl in ((torch.float64, "auto"), (torch.float32, "triton")):
            output = d.output.to(dtype).requires_grad_()
            values = q_head_log_likelihood(
                output, d.classes, d.continuous.to(dtype), MIXED, weights=WEIGHTS,
                reduction=reduction, impl=impl,
            )  # fmt: skip
            upstream = torch.linspace(-1, 2, values.numel(), dtype=dtype).view(values.shape)
            (grad,) = torch.autograd.grad(values, output, upstream)
            grads.append(grad.double())
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)


def test_double_backward_is_the_definitions() -> None:
    d = drawn(MIXED, 12, spread=0.5)
    found = []
    for dtype, impl in ((torch.float64, "auto"), (torch.float32, "triton")):
        output = d.output.to(dtype).requires_grad_()
        values = q_head_log_likelihood(output, d.classes, d.continuous.to(dtype), MIXED, impl=impl)
        (first,) = torch.autograd.grad(values.sum(), output, create_graph=True)
        first.square().sum().backward()
        assert output.grad is not None
        found.append(output.grad.double())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck(reduction: str) -> None:
    d = drawn(MIXED, 5)
    table = code_table(MIXED, torch.device("cpu"))
    torch.library.opcheck(
        evaluate,
        (d.output, d.classes, d.continuous, table.table, table.bounds, table.ones,
         counters(MIXED), table.widest, reduction, "triton"),
    )  # fmt: skip


def test_the_module_raises_at_once_on_cpu_and_counts_when_compiled() -> None:
    module = QHeadLikelihood(MIXED, reduction="sum", weights=WEIGHTS, impl="triton")
    d = drawn(MIXED, 6)
    classes = d.classes.clone()
    classes[2, 1] = 70
    with pytest.raises(InputError, match=r"row 2: c2 has 70 classes, and none 70"):
        module(d.output, classes, d.continuous)
    module.check()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert compiled(d.output, classes, d.continuous)[1].isnan()
    with pytest.raises(InputError, match=r"since the last check 1 class ind.* and 0 rows"):
        module.check()
    module.check()
    expected = module(d.output, d.classes, d.continuous)
    torch.testing.assert_close(compiled(d.output, d.classes, d.continuous), expected)


def test_a_codes_order_in_the_table_is_all_that_is_compiled_for() -> None:
    """One specialization for every experiment: nothing of a spec is a constant but block sizes."""
    seen = set()
    for name in ("mnist", "svhn", "celeba"):
        spec = experiments.get(name).latents
        d = drawn(spec, 128)
        with recording(run=False) as launches:
            likelihood_with_gradient(d.output, d.classes, d.continuous, spec, impl="triton")
        seen |= {tuple(sorted(launch.parameters.items())) for launch in launches}
    assert len(seen) == 1
