"""The heads' last layers with their objective, against fp64."""

import math

import pytest
import torch
from torch import Tensor

from fastinfogan import experiments
from fastinfogan_kernels.conv_block import ops
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec
from fastinfogan_kernels.objective.code_layout import code_table, make_counters
from fastinfogan_kernels.objective.d_head import DHeadResult, d_head_objective, d_head_op
from fastinfogan_kernels.objective.likelihood import q_head_log_likelihood
from fastinfogan_kernels.objective.q_head import (
    LINEAR_WINDOW,
    QHeadResult,
    q_head_objective,
    q_head_op,
)
from fastinfogan_kernels.runtime.launch import Implementation
from tests.helpers.d_head import D_SHAPES, check_d_head, check_non_finite_logits
from tests.helpers.specs import MIXED, assert_as_good, drawn, spec_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN in the kernels


class QCase:
    """Q's last layer: rows of the previous block, a weight, codes."""

    def __init__(
        self, spec: LatentSpec, rows: int, depth: int, *, norm: bool = True, features: int = 0
    ) -> None:
        source = torch.Generator().manual_seed(rows + depth)
        width = spec.output_width

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=source)

        self.spec, self.codes = spec, drawn(spec, rows)
        self.weights = tuple(0.5 + i for i in range(len(spec.codes)))
        self.y, self.bias = draw(rows, depth), draw(width) * 0.1
        self.params = draw(1, 3, features or depth) if norm else None
        self.weight = draw(width, depth) / depth**0.5

    def run(
        self,
        device: torch.device,
        dtype: torch.dtype,
        impl: Implementation,
        inputs: torch.dtype = torch.float32,
        counters: Tensor | None = None,
        slope: float = 0.1,
    ) -> QHeadResult:
        """Compute in `dtype` from rows and a weight rounded to `inputs`."""
        wide = torch.promote_types(dtype, torch.float32)
        params = None if self.params is None else self.params.to(device, wide)
        return q_head_objective(
            Deferred(self.y.to(device, inputs).to(dtype), params, slope),
            self.weight.to(inputs).to(device, wide), self.bias.to(device, wide),
            self.codes.classes.to(device), self.codes.continuous.to(device, wide), self.spec,
            weights=self.weights, counters=counters, with_output=True, impl=impl,
        )  # fmt: skip


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


def check_q_head(case: QCase, device: torch.device, dtype: torch.dtype, slope: float = 0.1) -> None:
    truth = case.run(device, torch.float64, "reference", dtype, slope=slope)
    baseline = case.run(device, dtype, "reference", dtype, slope=slope)
    counters = make_counters(case.spec, device)
    for _ in range(2):
        actual = case.run(device, dtype, "triton", dtype, counters, slope)
    assert actual.gradient.dtype == dtype
    tolerance = 5e-6 if dtype == torch.float32 else 1e-3
    for one, torchs, true in zip(actual, baseline, truth, strict=True):
        assert one is not None
        assert torchs is not None
        assert true is not None
        assert_as_good(one, torchs, true, tolerance)
    assert not counters.any()


@pytest.mark.parametrize("name", Q_CASES)
def test_q_head(name: str, device: torch.device, dtype: torch.dtype) -> None:
    check_q_head(Q_CASES[name], device, dtype)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_q_head_with_other_slopes(slope: float, device: torch.device, dtype: torch.dtype) -> None:
    check_q_head(Q_CASES["no norm"], device, dtype, slope)


def test_q_head_counts_invalid_classes_and_rows(device: torch.device) -> None:
    case = QCase(MIXED, 40, 16)
    case.codes.classes[3, 1] = 70
    case.y[17] = math.nan
    counters = make_counters(MIXED, device)
    found = case.run(device, torch.float32, "triton", counters=counters)
    assert counters.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert found.values.isnan().tolist() == [True] * 5
    assert found.gradient[3].isnan().sum() == 70


def test_chain_operations_take_the_gradient_that_q_head_leaves(device: torch.device) -> None:
    case = QCase(MIXED, 37, 24)
    found = case.run(device, torch.float32, "triton")
    assert case.params is not None
    operands = [t.to(device) for t in (case.y, case.params, case.weight, case.bias)]
    y, params, weight, bias = (t.double().requires_grad_() for t in operands)
    z = y * params[0, 0] + params[0, 1]
    output = torch.nn.functional.linear(torch.nn.functional.leaky_relu(z, 0.1), weight, bias)
    values = q_head_log_likelihood(
        output, case.codes.classes.to(device), case.codes.continuous.to(device).double(), MIXED,
        weights=case.weights,
    )  # fmt: skip
    z_grad, weight_grad, bias_grad = torch.autograd.grad(values.sum(), (z, weight, bias))
    x = (operands[0][:, None, None], operands[1], 0.1)
    g = found.gradient[:, None, None]
    window = (LINEAR_WINDOW, False, 1)
    dw = ops.weight_gradient(*x, g, None, None, operands[2], *window)
    dz, (sums,) = ops.data_gradient(g, None, None, operands[2], *x, None, None, None, *window)
    torch.testing.assert_close(dw.double(), weight_grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dz[:, 0, 0].double(), z_grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums[0, :, 0].sum(0).double(), z_grad.sum(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.bias_gradient.double(), bias_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("groups", "rows", "depth"), D_SHAPES)
def test_d_head(
    groups: int, rows: int, depth: int, device: torch.device, dtype: torch.dtype
) -> None:
    check_d_head(groups, rows, depth, "triton", device, dtype)


def test_pixels_of_a_channel_have_its_parameters_in_d_head(device: torch.device) -> None:
    source = torch.Generator().manual_seed(1)
    y, params, weight = (
        torch.randn(shape, generator=source).to(device) for shape in ((12, 64), (2, 3, 16), (1, 64))
    )
    actual = d_head_objective(Deferred(y, params, 0.0), weight, None, (1, 0), impl="triton")
    repeated = Deferred(y.double(), params.repeat(1, 1, 4).double(), 0.0)
    expected = d_head_objective(repeated, weight.double(), None, (1, 0))
    for one, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), truth, rtol=1e-5, atol=1e-5)


def losses_of(logits: list[float], targets: tuple[int, ...], device: torch.device) -> DHeadResult:
    """Compute the losses of given logits: rows of one feature, and a weight of 1."""
    rows = torch.tensor(logits, device=device)[:, None]
    weight = torch.ones(1, 1, device=device)
    return d_head_objective(Deferred(rows), weight, None, targets, impl="triton")


def test_losses_at_extremes(device: torch.device) -> None:
    logits = [1e4, -1e4, 0.0, -30.0, 30.0, -100.0]
    actual = losses_of(logits, (0, 1), device)
    wide = torch.tensor(logits, dtype=torch.float64, device=device)[:, None]
    truth = d_head_objective(Deferred(wide), torch.ones_like(wide[:1]), None, (0, 1))
    torch.testing.assert_close(actual.losses.double(), truth.losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(actual.gradient.double(), truth.gradient, rtol=1e-5, atol=1e-30)
    # The tail of softplus, where 1 + exp(z) is 1 in fp32.
    tail = losses_of([-20.0], (0,), device).losses
    assert tail.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


def test_d_head_counts_non_finite_logits(device: torch.device) -> None:
    check_non_finite_logits("triton", device)


def test_opcheck(device: torch.device) -> None:
    case = QCase(MIXED, 5, 16)
    assert case.params is not None
    table = code_table(MIXED, device)
    codes = (
        case.codes.classes.to(device), case.codes.continuous.to(device), table.table,
        table.bounds, table.ones,
    )  # fmt: skip
    y, params, weight, bias = (t.to(device) for t in (case.y, case.params, case.weight, case.bias))
    for with_output in (False, True):
        more = (make_counters(MIXED, device), table.widest, with_output, "triton")
        torch.library.opcheck(q_head_op, (y, params, 0.1, weight, bias, *codes, *more))
    counters = torch.zeros(2, dtype=torch.int32, device=device)
    targets = torch.tensor([1], dtype=torch.int32, device=device)
    for scale in (None, torch.tensor([2.0], device=device)):
        layer = (y, params, 0.1, weight[:1], bias[:1], targets, 1.0, scale, counters, "triton")
        torch.library.opcheck(d_head_op, layer)
