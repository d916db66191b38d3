"""The heads' last layers with their objective: on CPU, counted, and compiled ahead of time."""

import pytest
import torch
from torch import Tensor, nn

from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan_kernels.conv_block import elementwise, ops
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec
from fastinfogan_kernels.objective.code_layout import code_table, make_counters
from fastinfogan_kernels.objective.d_head import adversarial_losses, d_head_objective, d_head_op
from fastinfogan_kernels.objective.likelihood import (
    REDUCTIONS,
    log_likelihood_op,
    q_head_log_likelihood,
)
from fastinfogan_kernels.objective.q_head import (
    LINEAR_WINDOW,
    WIDEST,
    q_head_objective,
    q_head_op,
)
from fastinfogan_kernels.runtime.launch import Implementation, Launch, native_available, recording
from tests.helpers import ahead
from tests.helpers.d_head import D_SHAPES, check_d_head, check_non_finite_logits
from tests.helpers.specs import MIXED, WEIGHTS, drawn, spec_of

META = torch.device("meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_binary_cross_entropy(dtype: torch.dtype) -> None:
    logits = (torch.linspace(-9, 9, 60) ** 3 / 50).to(dtype).view(-1, 1).requires_grad_()
    losses = adversarial_losses(logits, (1, 0, 1))
    wide = logits.detach().double().view(3, 20).requires_grad_()
    labels = torch.tensor([1.0, 0.0, 1.0]).double()[:, None].expand(3, 20)
    truth = nn.functional.binary_cross_entropy_with_logits(wide, labels, reduction="none").mean(1)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    (gradient,) = torch.autograd.grad(losses, logits, upstream)
    (true_gradient,) = torch.autograd.grad(truth, wide, upstream.double())
    assert gradient.dtype == dtype
    torch.testing.assert_close(losses.double(), truth, rtol=1e-6, atol=1e-9)
    rtol = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(gradient.view(3, 20).double(), true_gradient, rtol=rtol, atol=1e-9)


def test_losses_are_differentiable_twice() -> None:
    logits = torch.linspace(-3, 3, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: adversarial_losses(x, (1, 0)), logits)
    assert torch.autograd.gradgradcheck(lambda x: adversarial_losses(x, (1, 0)), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("groups", "rows", "depth"), D_SHAPES)
def test_d_head(
    groups: int, rows: int, depth: int, dtype: torch.dtype, native: Implementation
) -> None:
    check_d_head(groups, rows, depth, native, torch.device("cpu"), dtype)


def test_non_finite_logits_are_counted(impl: Implementation) -> None:
    check_non_finite_logits(impl, torch.device("cpu"))


def test_invalid_arguments() -> None:
    with pytest.raises(InputError, match="5 logits cannot be divided into 2 equal groups"):
        adversarial_losses(torch.zeros(5), (1, 0))
    with pytest.raises(InputError, match=r"1 \(real\) or 0 \(generated\) for each"):
        adversarial_losses(torch.zeros(4), (1, 2))
    weight = torch.zeros(1, 3)
    with pytest.raises(InputError, match="2 targets for 1 statistics groups"):
        d_head_objective(Deferred(torch.zeros(4, 3), torch.zeros(1, 3, 3)), weight, None, (1, 0))
    with pytest.raises(InputError, match="must have one output, not 2"):
        d_head_objective(Deferred(torch.zeros(4, 3)), torch.zeros(2, 3), None, (1, 0))
    codes = (torch.zeros(4, 2).long(), torch.zeros(4, 3), MIXED)
    with pytest.raises(InputError, match="has 78 outputs, the codes need 79"):
        q_head_objective(Deferred(torch.zeros(4, 3)), torch.zeros(78, 3), None, *codes)
    with pytest.raises(
        InputError, match=r"Q's last layer needs rows .* not \(4, 3\) and \(79, 2\)"
    ):
        q_head_objective(Deferred(torch.zeros(4, 3)), torch.zeros(79, 2), None, *codes)


@pytest.mark.parametrize("deferred", [True, False])
def test_last_layers_on_cpu_are_the_composition(impl: Implementation, deferred: bool) -> None:
    source = torch.Generator().manual_seed(1)
    d, width = drawn(MIXED, 10), MIXED.output_width
    y = torch.randn(10, 8, generator=source)
    params = torch.randn(2, 3, 8, generator=source) if deferred else None
    slope = 0.1 if deferred else 1.0
    for_q = Deferred(y, None if params is None else params[:1], slope)
    q_weight, q_bias = torch.randn(width, 8, generator=source), torch.randn(width, generator=source)
    q = q_head_objective(
        for_q, q_weight, q_bias, d.classes, d.continuous, MIXED, weights=WEIGHTS, with_output=True,
        impl=impl,
    )  # fmt: skip
    x = y.double()
    if params is not None:
        x = nn.functional.leaky_relu(y.double() * params[0, 0] + params[0, 1], 0.1)
    bias = q_bias.double().requires_grad_()
    output = nn.functional.linear(x, q_weight.double(), bias)
    values = q_head_log_likelihood(output, d.classes, d.continuous.double(), MIXED)
    gradients = torch.autograd.grad((values * torch.tensor(WEIGHTS)).sum(), (output, bias))
    assert q.output is not None
    for actual, truth in zip(q, (output, values, *gradients), strict=True):
        torch.testing.assert_close(actual.double(), truth, rtol=2e-4, atol=2e-4)
    weight, d_bias = torch.randn(1, 8, generator=source), torch.randn(1, generator=source)
    found = d_head_objective(Deferred(y, params, slope), weight, d_bias, (1, 0), 3.0, impl=impl)
    wide = Deferred(y.double(), None if params is None else params.double(), slope)
    expected = d_head_objective(wide, weight.double(), d_bias.double(), (1, 0), 3.0)
    for actual, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not native_available(), reason="fastinfogan_kernels._native was not compiled")
def test_opcheck() -> None:
    counters, targets = torch.zeros(2, dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32)
    torch.library.opcheck(
        d_head_op,
        (torch.randn(4, 8), torch.randn(2, 3, 8), 0.1, torch.randn(1, 8), torch.randn(1), targets,
         1.0, None, counters, "native"),
    )  # fmt: skip


def names(launches: list[Launch]) -> list[str]:
    return [launch.name.removesuffix("_kernel") for launch in launches]


def moved(launches: list[Launch]) -> int:
    return sum(launch.read + launch.written for launch in launches)


def counted_q_head(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[list[Launch], ...]:
    """Q's last layer with its likelihood and gradients up to the large products: fused, and not."""
    spec, rows = experiments.get(name).latents, 128
    width, depth = spec.output_width, 128
    table, counters = code_table(spec, META), make_counters(spec, META)

    def empty(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=of, device=META)

    y, params = empty(rows, depth, of=dtype), empty(1, 3, depth)
    weight, bias = empty(width, depth), empty(width)
    codes = (empty(rows, len(spec.categorical), of=torch.int64), empty(rows, len(spec.continuous)))
    tables = (table.table, table.bounds, table.ones, counters)
    with recording() as fused:
        fused_layer = (y, params, 0.1, weight, bias)
        q_head_op(*fused_layer, *codes, *tables, table.widest, False, "triton")
    with recording() as apart:
        output = ops.plain_block(
            y[:, None, None], params, 0.1, weight, bias, LINEAR_WINDOW, False, 1, "none", 1.0
        )
        _, gradient = log_likelihood_op(
            output[:, 0, 0], *codes, *tables, table.widest, "mean", "triton"
        )
        g = gradient[:, None, None]
        elementwise.act_backward_reduce(g, output, None, 1, "none", 1.0, None, None, bias)
    return fused, apart


@pytest.mark.parametrize("name", ["mnist", "svhn", "celeba"])
def test_qs_last_layer_is_one_launch_and_moves_little(name: str) -> None:
    fused, apart = counted_q_head(name)
    assert names(fused) == ["q_head"]
    assert names(apart) == ["implicit_gemm", "log_likelihood", "act_backward_reduce"]
    assert moved(fused) < 0.8 * moved(apart)


def test_ds_step_is_one_launch() -> None:
    launches = objective_launches(MIXED, torch.bfloat16, 128)
    assert names(launches) == [
        *["log_likelihood"] * 3, "q_head", "d_head", "d_head"
    ]  # fmt: skip
    assert {a.device.type for x in launches for a in x.arguments if isinstance(a, Tensor)} == {
        "meta"
    }


def objective_launches(
    spec: LatentSpec, dtype: torch.dtype, batch: int, depths: tuple[int, int] = (128, 1024)
) -> list[Launch]:
    """Record the objective's launches on tensors without storage.

    Args:
        spec: the codes.
        dtype: of rows and outputs; weights are fp32.
        batch: images in a step; D reads twice as many in its own.
        depths: features that the last layers of Q and of D read.

    Returns:
        Of Q: the likelihood by each reduction, and if it fits the last layer with it. Of D: the
        last layer with the losses, of D's step and of G's.
    """

    def empty(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=of, device=META)

    n, width = len(spec.codes), spec.output_width
    of_q, of_d = depths
    table = code_table(spec, META)
    codes = (
        empty(batch, len(spec.categorical), of=torch.int64),
        empty(batch, len(spec.continuous)),
        table.table,
        table.bounds,
        empty(n),
        make_counters(spec, META),
    )
    with recording() as launches:
        for reduction in REDUCTIONS:
            log_likelihood_op(
                empty(batch, width, of=dtype), *codes, table.widest, reduction, "triton"
            )
        if width <= WIDEST:
            q_head_op(
                empty(batch, of_q, of=dtype), empty(1, 3, of_q), 0.1, empty(width, of_q),
                empty(width), *codes, table.widest, False, "triton",
            )  # fmt: skip
        device_scale = empty(1) if dtype == torch.float16 else None  # fp16's losses are scaled
        for groups in (2, 1):
            d_head_op(
                empty(groups * batch, of_d, of=dtype), empty(groups, 3, of_d), 0.1, empty(1, of_d),
                empty(1), empty(groups, of=torch.int32), 1.0, device_scale,
                empty(2, of=torch.int32), "triton",
            )  # fmt: skip
    return launches


def every_experiments_launches() -> list[Launch]:
    """For `ahead`: the paper's experiments, and the smallest and largest class counts."""
    specs = [experiments.get(name).latents for name in ("mnist", "celeba", "faces")]
    specs.append(spec_of(Categorical(2), Categorical(1000), Continuous("clipped")))
    return [launch for spec in specs for launch in objective_launches(spec, torch.bfloat16, 128)]


def merging_launches() -> list[Launch]:
    """Record launches of several blocks, the last of which merges what the others wrote."""
    return objective_launches(experiments.get("mnist").latents, torch.bfloat16, 1024)[1:]


def test_arrivals_follow_a_barrier_and_partials_bypass_the_first_cache() -> None:
    """What the interpreter, which runs one program after another, cannot show of the merge."""
    found = ahead.compiled("sm_90", "test_heads", "merging_launches")
    assert len(found) == 5
    for each in found:
        order = " ".join(ahead.order(each["assembly"]))
        before, arrival, after = order.partition(" barrier arrival barrier barrier ")
        assert arrival, order
        assert before.split()[-1] == "part", order
        assert "merge" in after, order
        assert "merge" not in before, order


@pytest.mark.parametrize("target", ahead.TARGETS)
def test_compiled_ahead_of_time(target: str) -> None:
    found = ahead.compiled(target, "test_heads", "every_experiments_launches")
    kernels = {"log_likelihood_kernel", "q_head_kernel", "d_head_kernel"}
    assert {each["kernel"] for each in found} == kernels
    for each in found:
        what = (each["kernel"], each["variant"])
        assert each["stack"] == 0, what
        assert each["f64"] == 0, what
        assert 0 < each["registers"] < 200, what
        assert each["shared"] <= 65_536, what
        if each["kernel"] == "q_head_kernel":
            assert each["matrix"], what
