"""The objective's kernels against fp64: any mix of codes, odd batches, extremes, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import Drawn, any_codes, drawn, spec_of
from torch import Tensor

from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan.kernels import chain, heads
from fastinfogan.kernels.adversarial import adversarial_losses, losses_with_gradient
from fastinfogan.kernels.code_table import code_table
from fastinfogan.kernels.launch import recording
from fastinfogan.kernels.likelihood import (
    REDUCTIONS,
    evaluate,
    likelihood_with_gradient,
    q_head_log_likelihood,
)
from fastinfogan.kernels.maps import Deferred
from fastinfogan.kernels.targets import counters
from fastinfogan.latents import Categorical, Continuous, LatentSpec
from fastinfogan.nn import QHeadLikelihood

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN in the kernels

MIXED = spec_of(
    Categorical(3),
    Categorical(70),
    Continuous(),
    Continuous("fixed"),
    Continuous("clipped", (0.5, 2.0)),
)
WEIGHTS = (1.0, 2.0, 0.5, 0.1, 10.0)


def assert_as_good(found: Tensor, torch_at_same: Tensor, truth: Tensor, tolerance: float) -> None:
    """Per element within twice torch's own error at the same precision, and a tolerance."""
    error = (found.double() - truth).abs()
    theirs = (torch_at_same.double() - truth).abs()
    scale = truth.abs().clamp(min=1.0)
    assert bool((error <= 2 * theirs + tolerance * scale).all()), (error / scale).max()


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


@settings(max_examples=25, deadline=None)
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


class QCase:
    """Q's last layer: rows of a block before, a weight, codes."""

    def __init__(
        self, spec: LatentSpec, rows: int, depth: int, *, norm: bool = True, features: int = 0
    ) -> None:
        source = torch.Generator().manual_seed(rows + depth)
        width = spec.output_width

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=source)

        self.spec, self.codes = spec, drawn(spec, rows)
        self.y, self.bias = draw(rows, depth), draw(width) * 0.1
        self.params = draw(1, 3, features or depth) if norm else None
        self.weight = draw(width, depth) / depth**0.5

    def run(
        self, dtype: torch.dtype, impl: str, counted: Tensor | None = None, slope: float = 0.1
    ) -> heads.QHead:
        wide = torch.promote_types(dtype, torch.float32)
        return heads.q_head_objective(
            Deferred(
                self.y.to(dtype), None if self.params is None else self.params.to(wide), slope
            ),
            self.weight.to(wide), self.bias.to(wide), self.codes.classes,
            self.codes.continuous.to(wide), self.spec, weights=self.weights, counted=counted,
            with_output=True, impl=impl,
        )  # fmt: skip

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(0.5 + i for i in range(len(self.spec.codes)))


Q_CASES = {
    "mixed": QCase(MIXED, 37, 70),
    "one row": QCase(MIXED, 1, 16),
    "no norm": QCase(MIXED, 33, 64, norm=False),
    "features of pixels": QCase(spec_of(Categorical(10), Continuous()), 70, 64, features=16),
    "mnist": QCase(experiments.get("mnist").latents, 128, 128),
    "celeba": QCase(experiments.get("celeba").latents, 50, 128),
    "256 columns": QCase(spec_of(Categorical(250), Continuous(), Continuous("fixed"),
                                 Continuous("clipped")), 20, 24),
    "wider than a tile": QCase(spec_of(Categorical(300)), 20, 24),
}  # fmt: skip


@pytest.mark.parametrize("name", Q_CASES)
def test_qs_last_layer_and_its_likelihood(name: str) -> None:
    case = Q_CASES[name]
    truth = case.run(torch.float64, "reference")
    theirs = case.run(torch.float32, "reference")
    counted = counters(case.spec)
    for _ in range(2):
        ours = case.run(torch.float32, "triton", counted)
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert mine is not None
        assert other is not None
        assert true is not None
        assert_as_good(mine, other, true, 5e-6)
    assert not counted.any()


@pytest.mark.parametrize("slope", [0.0, 0.1, 1.0])
def test_qs_last_layer_in_fp16(slope: float) -> None:
    """Rows that fp16 holds exactly and no rounding of y behind the activation: fp32's accuracy."""
    case = QCase(MIXED, 37, 64, norm=False)
    case.y = case.y.half().float()
    case.weight = case.weight.half().float()
    truth = case.run(torch.float64, "reference", slope=1.0 if slope == 1.0 else slope)
    ours = case.run(torch.float16, "triton", slope=slope)
    assert ours.gradient.dtype == torch.float16
    torch.testing.assert_close(ours.values.double(), truth.values, rtol=3e-3, atol=3e-3)
    torch.testing.assert_close(ours.gradient.double(), truth.gradient, rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(
        ours.bias_gradient.double(), truth.bias_gradient, rtol=2e-2, atol=2e-3
    )


def test_qs_head_counts_bad_classes_and_rows() -> None:
    case = QCase(MIXED, 40, 16)
    case.codes.classes[3, 1] = 70
    case.y[17] = math.nan
    counted = counters(MIXED)
    found = case.run(torch.float32, "triton", counted)
    assert counted.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert found.values.isnan().tolist() == [True] * 5
    assert found.gradient[3].isnan().sum() == 70


def test_gradients_of_weight_and_rows_follow_from_what_qs_head_leaves() -> None:
    """The engine's way: the operations of a chain, fed with our gradient."""
    case = QCase(MIXED, 37, 24)
    found = case.run(torch.float32, "triton")
    y, params, weight, bias = (
        t.double().requires_grad_()
        for t in (case.y, case.params, case.weight, case.bias)  # type: ignore[union-attr]
    )
    z = y * params[0, 0] + params[0, 1]
    output = torch.nn.functional.linear(torch.nn.functional.leaky_relu(z, 0.1), weight, bias)
    values = q_head_log_likelihood(
        output, case.codes.classes, case.codes.continuous.double(), MIXED, weights=case.weights
    )
    z_grad, weight_grad, bias_grad = torch.autograd.grad(values.sum(), (z, weight, bias))
    maps = (case.y[:, None, None], case.params, 0.1)
    g = found.gradient[:, None, None]
    where = (heads.LINEAR_WINDOW, False, 1)
    dw = chain.weight_gradient(*maps, g, None, None, case.weight, *where)
    dz, sums = chain.data_gradient(g, None, None, case.weight, *maps, *where)
    torch.testing.assert_close(dw.double(), weight_grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dz[:, 0, 0].double(), z_grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums[0, :, 0].sum(0).double(), z_grad.sum(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.bias_gradient.double(), bias_grad, rtol=1e-4, atol=1e-4)


D_SHAPES = [(1, 1, 16), (2, 37, 70), (2, 128, 1024), (3, 5, 600)]


@pytest.mark.parametrize(("groups", "rows", "depth"), D_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ds_last_layer_and_its_losses(
    groups: int, rows: int, depth: int, dtype: torch.dtype
) -> None:
    source = torch.Generator().manual_seed(depth)
    y = torch.randn(groups * rows, depth, generator=source).to(dtype)
    params = torch.randn(groups, 3, depth, generator=source)
    weight = torch.randn(1, depth, generator=source) * 3 / depth**0.5
    bias = torch.randn(1, generator=source)
    targets = (1, 0, 1)[:groups]
    counted = torch.zeros(2, dtype=torch.int32)

    def run(dtype: torch.dtype, impl: str) -> heads.DHead:
        wide = torch.promote_types(dtype, torch.float32)
        return heads.d_head_objective(
            Deferred(y.to(dtype), params.to(wide), 0.1), weight.to(wide), bias.to(wide), targets,
            2.5, counted=counted, impl=impl,
        )  # fmt: skip

    truth, theirs = run(torch.float64, "reference"), run(dtype, "reference")
    for _ in range(2):
        ours = run(dtype, "triton")
    assert not counted.any()
    assert ours.gradient.dtype == dtype
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert_as_good(mine, other, true, 3e-6 if dtype == torch.float32 else 1e-3)


def test_features_of_pixels_share_a_channels_parameters_in_ds_head() -> None:
    source = torch.Generator().manual_seed(1)
    y, params = torch.randn(12, 64, generator=source), torch.randn(2, 3, 16, generator=source)
    weight = torch.randn(1, 64, generator=source)
    ours = heads.d_head_objective(Deferred(y, params, 0.0), weight, None, (1, 0), impl="triton")
    repeated = Deferred(y.double(), params.repeat(1, 1, 4).double(), 0.0)
    truth = heads.d_head_objective(repeated, weight.double(), None, (1, 0))
    for mine, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("groups", "rows"), [(1, 1), (2, 129), (1, 2500), (4, 1024)])
def test_losses_from_logits(groups: int, rows: int, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(rows)
    logits = (torch.randn(groups * rows, generator=source) * 8).to(dtype)
    targets = (1, 0, 0, 1)[:groups]
    counted = torch.zeros(2, dtype=torch.int32)
    truth = losses_with_gradient(logits.double(), targets, 3.0)
    theirs = losses_with_gradient(logits, targets, 3.0, impl="reference")
    for _ in range(2):
        ours = losses_with_gradient(logits, targets, 3.0, counted=counted, impl="triton")
    assert not counted.any()
    assert_as_good(ours[0], theirs[0], truth[0], 1e-6)
    # Underflow of fp16 included: its smallest number is 6e-8.
    assert_as_good(ours[1], theirs[1], truth[1], 1e-6 if dtype == torch.float32 else 1e-4)


def test_losses_at_extremes() -> None:
    logits = torch.tensor([1e4, -1e4, 0.0, -30.0, 30.0, -100.0])
    truth = losses_with_gradient(logits.double(), (0, 1))
    losses, gradient = losses_with_gradient(logits, (0, 1), impl="triton")
    torch.testing.assert_close(losses.double(), truth[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), truth[1], rtol=1e-5, atol=1e-30)
    # The tail of softplus, where 1 + exp(z) is 1 in fp32.
    tail, _ = losses_with_gradient(torch.tensor([-20.0]), (0,), impl="triton")
    assert tail.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


def test_logits_that_are_not_finite_are_counted() -> None:
    counted = torch.zeros(2, dtype=torch.int32)
    logits = torch.zeros(3000)
    logits[[5, 2900]] = torch.tensor([math.nan, -math.inf])
    losses, _ = losses_with_gradient(logits, (1, 0), counted=counted, impl="triton")
    assert counted.tolist() == [2, 0]
    assert losses[0].isnan()
    assert losses[1].isfinite()


def test_losses_are_differentiable_twice() -> None:
    source = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 1, generator=source).requires_grad_()
    losses = adversarial_losses(logits, (1, 0), impl="triton")
    upstream = torch.tensor([0.5, -3.0])
    (plain,) = torch.autograd.grad(losses, logits, upstream, retain_graph=True)
    (first,) = torch.autograd.grad(losses, logits, upstream, create_graph=True)
    torch.testing.assert_close(plain, first)
    (second,) = torch.autograd.grad(first.sum(), logits)
    p = torch.sigmoid(logits.detach())
    factor = (upstream / 3).repeat_interleave(3)[:, None]
    torch.testing.assert_close(second, p * (1 - p) * factor)


def test_opcheck_of_the_others() -> None:
    case = QCase(MIXED, 5, 16)
    table = code_table(MIXED, torch.device("cpu"))
    codes = (case.codes.classes, case.codes.continuous, table.table, table.bounds, table.ones)
    layer = (case.y, case.params, 0.1, case.weight, case.bias)
    for with_output in (False, True):
        torch.library.opcheck(heads.fused_q_head, (*layer, *codes, counters(MIXED), with_output))
    counted = torch.zeros(2, dtype=torch.int32)
    targets = torch.tensor([1], dtype=torch.int32)
    row = (case.y, case.params, 0.1, case.weight[:1], case.bias[:1])
    torch.library.opcheck(heads.fused_d_head, (*row, targets, 1.0, counted, "triton"))
    torch.library.opcheck(
        torch.ops.fastinfogan.adversarial_losses.default,
        (torch.randn(4, 1), targets, 1.0, counted, "triton"),
    )


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
