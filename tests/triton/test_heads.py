"""The heads' last layers with their objective, and D's losses, against fp64."""

import math

import pytest
import torch
from torch import Tensor

from fastinfogan import experiments
from fastinfogan_kernels.conv_block import ops
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec
from fastinfogan_kernels.objective import heads
from fastinfogan_kernels.objective.adversarial import adversarial_losses, losses_with_gradient
from fastinfogan_kernels.objective.code_layout import code_table
from fastinfogan_kernels.objective.likelihood import (
    q_head_log_likelihood,
)
from fastinfogan_kernels.objective.targets import counters
from tests.helpers.specs import assert_as_good, drawn, spec_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN in the kernels

MIXED = spec_of(
    Categorical(3),
    Categorical(70),
    Continuous(),
    Continuous("fixed"),
    Continuous("clipped", (0.5, 2.0)),
)


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
    dw = ops.weight_gradient(*maps, g, None, None, case.weight, *where)
    dz, (sums,) = ops.data_gradient(g, None, None, case.weight, *maps, None, None, None, *where)
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
    for with_output, impl in ((False, "triton"), (True, "triton"), (False, "native")):
        more = (counters(MIXED), table.widest, with_output, impl)
        torch.library.opcheck(heads.fused_q_head, (*layer, *codes, *more))
    counted = torch.zeros(2, dtype=torch.int32)
    targets = torch.tensor([1], dtype=torch.int32)
    row = (case.y, case.params, 0.1, case.weight[:1], case.bias[:1])
    torch.library.opcheck(heads.fused_d_head, (*row, targets, 1.0, None, counted, "triton"))
    scale = torch.tensor([2.0])
    torch.library.opcheck(heads.fused_d_head, (*row, targets, 1.0, scale, counted, "triton"))
    torch.library.opcheck(
        torch.ops.fastinfogan.adversarial_losses.default,
        (torch.randn(4, 1), targets, 1.0, counted, "triton"),
    )
