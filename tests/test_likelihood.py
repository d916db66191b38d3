"""The objective on its own: the definition, the module, native code; others' formulas."""

import copy
import math
from pathlib import Path

import ahead
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from specs import Drawn, any_codes, drawn, spec_of
from torch import Tensor, nn

from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan.kernels import chain, heads, pointwise
from fastinfogan.kernels.adversarial import adversarial_losses, losses_with_gradient
from fastinfogan.kernels.adversarial import evaluate as evaluate_losses
from fastinfogan.kernels.backend import native_available
from fastinfogan.kernels.code_table import code_table, entries
from fastinfogan.kernels.inspect import META
from fastinfogan.kernels.launch import Launch, recording
from fastinfogan.kernels.likelihood import (
    REDUCTIONS,
    evaluate,
    likelihood_with_gradient,
    q_head_log_likelihood,
    reference_log_likelihood,
)
from fastinfogan.kernels.maps import Deferred
from fastinfogan.kernels.targets import counters
from fastinfogan.latents import Categorical, Continuous, LatentSpec, Noise
from fastinfogan.nn import QHeadLikelihood

MIXED = spec_of(
    Categorical(3),
    Categorical(20),
    Continuous(),
    Continuous("fixed"),
    Continuous("clipped", (0.5, 2.0)),
)
WEIGHTS = (1.0, 2.0, 0.5, 0.1, 10.0)
ON_CPU = ["reference", *(["native"] if native_available() else [])]


def in_fp64(d: Drawn) -> tuple[Tensor, Tensor, Tensor]:
    return d.output.double(), d.classes, d.continuous.double()


# --- the definition -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(any_codes(), st.integers(1, 20), st.integers(0, 2**31))
def test_any_mix_is_scipys(spec: LatentSpec, rows: int, seed: int) -> None:
    output, classes, continuous = in_fp64(drawn(spec, rows, seed))
    q, c = output.numpy(), continuous.numpy()
    expected = []
    for i, place in enumerate(spec.logit_slices):
        log_p = special.log_softmax(q[:, place], 1)
        expected.append(np.take_along_axis(log_p, classes[:, i : i + 1].numpy(), 1)[:, 0])
    for i, code in enumerate(spec.continuous):
        mean, raw = (q[:, s.start + i] for s in (spec.mean_slice, spec.deviation_slice))
        deviation = np.exp(raw)
        if code.deviation == "clipped":
            deviation = np.clip(deviation, *code.clip)
        if code.deviation == "fixed":
            deviation = np.ones_like(deviation)
        expected.append(stats.norm.logpdf(c[:, i], mean, deviation))
    found = reference_log_likelihood(output, classes, continuous, spec)
    np.testing.assert_allclose(found.numpy(), np.stack(expected, 1), rtol=1e-9, atol=1e-12)


def test_it_is_torchs_distributions() -> None:
    output, classes, continuous = in_fp64(drawn(MIXED, 30))
    found = reference_log_likelihood(output, classes, continuous, MIXED)
    categorical = torch.distributions.Categorical(logits=output[:, 3:23])
    torch.testing.assert_close(found[:, 1], categorical.log_prob(classes[:, 1]))
    normal = torch.distributions.Normal(output[:, 23], output[:, 26].exp())
    torch.testing.assert_close(found[:, 2], normal.log_prob(continuous[:, 0]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_of_gradients(reduction: str) -> None:
    output, classes, continuous = in_fp64(drawn(MIXED, 4, spread=0.7))

    def values(output: Tensor, continuous: Tensor) -> Tensor:
        return q_head_log_likelihood(
            output, classes, continuous, MIXED, weights=WEIGHTS, reduction=reduction
        )

    inputs = (output.requires_grad_(), continuous.requires_grad_())
    assert torch.autograd.gradcheck(values, inputs)
    assert torch.autograd.gradgradcheck(values, inputs)


def test_the_table_has_each_column_once() -> None:
    table = code_table(MIXED, torch.device("cpu"))
    assert table.table.tolist() == [
        [0, 0, 3, 0], [0, 3, 20, 1], [1, 23, 26, 0], [2, 24, 27, 1], [1, 25, 28, 2]
    ]  # fmt: skip
    assert table.owners.tolist() == [0] * 3 + [1] * 20 + [2, 3, 4, 2, 3, 4]
    assert table.widest == 20
    assert table.bounds[:4].tolist() == [[-math.inf, math.inf]] * 4
    torch.testing.assert_close(table.bounds[4].exp(), torch.tensor([0.5, 2.0]))
    assert entries(MIXED)[4].high == math.log(2.0)
    assert code_table(copy.deepcopy(MIXED), torch.device("cpu")) is table


# --- kernels on CPU -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.skipif(not native_available(), reason="fastinfogan._native was not compiled")
def test_native_is_as_good_as_torch(reduction: str, dtype: torch.dtype) -> None:
    d = drawn(MIXED, 133, spread=1.0)
    output = d.output.to(dtype)
    keywords = {"weights": WEIGHTS, "reduction": reduction}
    truth = likelihood_with_gradient(
        output.double(), d.classes, d.continuous.double(), MIXED, **keywords
    )
    counted = counters(MIXED)
    theirs, ours = (
        likelihood_with_gradient(
            output, d.classes, d.continuous, MIXED, counted=counted, impl=impl, **keywords
        )
        for impl in ("reference", "native")
    )
    assert not counted.any()
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert mine.dtype == other.dtype
        error, allowed = (mine.double() - true).abs(), 2 * (other.double() - true).abs()
        assert bool((error <= allowed + 3e-6 * true.abs().clamp(min=1)).all())


@settings(max_examples=40, deadline=None)
@given(any_codes(), st.integers(1, 40), st.integers(0, 2**31))
@pytest.mark.skipif(not native_available(), reason="fastinfogan._native was not compiled")
def test_native_of_any_mix(spec: LatentSpec, rows: int, seed: int) -> None:
    d = drawn(spec, rows, seed, spread=1.0)
    truth = likelihood_with_gradient(*in_fp64(d), spec)
    ours = likelihood_with_gradient(d.output, d.classes, d.continuous, spec, impl="native")
    for mine, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ON_CPU)
def test_extremes_stay_finite_and_exact(impl: str) -> None:
    spec = spec_of(Categorical(2), Continuous(), Continuous("clipped", (0.1, 2.0)))
    output = torch.tensor(
        [
            [1e4, -1e4, 0.5, 0.0, math.log(1e-6), -3.0],
            [1e4, -1e4, 0.5, 0.0, math.log(1e6), 0.7],
        ]
    )
    classes, continuous = torch.tensor([[1], [0]]), torch.tensor([[0.50001, 0.0], [-1.0, 0.0]])
    truth, true_gradient = likelihood_with_gradient(
        output.double(), classes, continuous.double(), spec, reduction="none"
    )
    values, gradient = likelihood_with_gradient(
        output, classes, continuous, spec, reduction="none", impl=impl
    )
    assert values[:, 0].tolist() == [-2e4, 0.0]
    torch.testing.assert_close(values.double(), truth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-4, atol=1e-5)
    assert gradient[:, -1].tolist() == [0.0, 0.0]
    assert gradient[0, -2] > 50


@pytest.mark.parametrize("impl", ON_CPU)
def test_backward_is_the_upstream_gradient_times_ours(impl: str) -> None:
    d = drawn(MIXED, 40, spread=1.0)
    for reduction in REDUCTIONS:
        grads = []
        for dtype, by in ((torch.float64, "auto"), (torch.float32, impl)):
            output = d.output.to(dtype).requires_grad_()
            values = q_head_log_likelihood(
                output, d.classes, d.continuous.to(dtype), MIXED, weights=WEIGHTS,
                reduction=reduction, impl=by,
            )  # fmt: skip
            upstream = torch.linspace(-1, 2, values.numel(), dtype=dtype).view(values.shape)
            (first,) = torch.autograd.grad(values, output, upstream, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), output)
            grads.append((first.detach().double(), second.double()))
        torch.testing.assert_close(grads[1], grads[0], rtol=2e-3, atol=2e-3)


@pytest.mark.skipif(not native_available(), reason="fastinfogan._native was not compiled")
def test_opcheck() -> None:
    d = drawn(MIXED, 5)
    table = code_table(MIXED, torch.device("cpu"))
    tensors = (d.output, d.classes, d.continuous, table.table, table.bounds, table.ones)
    for reduction in REDUCTIONS:
        torch.library.opcheck(
            evaluate, (*tensors, counters(MIXED), table.widest, reduction, "native")
        )
    counted, targets = torch.zeros(2, dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32)
    torch.library.opcheck(evaluate_losses, (torch.randn(4, 1), targets, 1.0, counted, "native"))
    torch.library.opcheck(
        heads.fused_d_head,
        (torch.randn(4, 8), torch.randn(2, 3, 8), 0.1, torch.randn(1, 8), torch.randn(1), targets,
         1.0, counted, "native"),
    )  # fmt: skip


# --- the module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ON_CPU)
def test_reductions_and_weights(impl: str) -> None:
    d = drawn(MIXED, 30, spread=1.0)
    rows = reference_log_likelihood(*in_fp64(d), MIXED) * torch.tensor(WEIGHTS).double()
    for reduction, expected in (("none", rows), ("sum", rows.sum(0)), ("mean", rows.mean(0))):
        module = QHeadLikelihood(MIXED, weights=WEIGHTS, reduction=reduction, impl=impl)
        found = module(d.output, d.classes, d.continuous)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("impl", ON_CPU)
def test_compiled_in_one_graph(impl: str, reduction: str) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.layer = nn.Linear(7, MIXED.output_width)
            self.likelihood = QHeadLikelihood(
                MIXED, weights=WEIGHTS, reduction=reduction, impl=impl
            )

        def forward(self, x: Tensor, classes: Tensor, continuous: Tensor) -> Tensor:
            return self.likelihood(self.layer(x), classes, continuous).sum()

    network, d = Network(), drawn(MIXED, 12)
    x = torch.randn(12, 7, generator=torch.Generator().manual_seed(4))
    network(x, d.classes, d.continuous).backward()
    eager = [p.grad for p in network.parameters()]
    network.zero_grad()
    compiled = torch.compile(network, fullgraph=True)
    compiled(x, d.classes, d.continuous).backward()
    torch.testing.assert_close([p.grad for p in network.parameters()], eager)
    compiled(x * math.nan, d.classes, d.continuous)
    with pytest.raises(InputError, match=r"0 class indices .* and 12 rows of Q's output"):
        network.likelihood.check()
    network.likelihood.check()


@pytest.mark.parametrize("impl", ON_CPU)
def test_autocast_and_bf16(impl: str) -> None:
    d = drawn(MIXED, 20)
    layer = nn.Linear(5, MIXED.output_width)
    module = QHeadLikelihood(MIXED, impl=impl)
    x = torch.randn(20, 5)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        assert output.dtype == torch.bfloat16
        output.retain_grad()
        values = module(output, d.classes, d.continuous)
    assert values.dtype == torch.float32
    values.sum().backward()
    assert output.grad is not None
    assert output.grad.dtype == torch.bfloat16
    expected, gradient = likelihood_with_gradient(
        output.double(), d.classes, d.continuous.double(), MIXED
    )
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.grad.double(), gradient, rtol=1e-2, atol=1e-4)


def test_what_is_wrong_is_told_at_once_with_its_place() -> None:
    d = drawn(MIXED, 6)
    module = QHeadLikelihood(MIXED)
    classes, output = d.classes.clone(), d.output.clone()
    classes[4, 1] = -1
    with pytest.raises(InputError, match=r"^row 4: c2 has 20 classes, and none -1$"):
        module(d.output, classes, d.continuous)
    for column, name in ((2, "c1"), (23, "c3"), (28, "c5")):
        output = d.output.clone()
        output[5, column] = math.nan
        with pytest.raises(
            InputError, match=rf"^row 5: Q's output for {name}, column {column}, is nan$"
        ):
            module(output, d.classes, d.continuous)
    module.check()


def test_what_does_not_fit_is_told() -> None:
    d = drawn(MIXED, 6)
    module = QHeadLikelihood(MIXED)
    good = (d.output, d.classes, d.continuous)
    for arguments, message in (
        (
            (d.output[:, 1:], *good[1:]),
            r"must be \(rows, 29\).*23 logits.* it is \(6, 28\)",
        ),
        ((d.output[:5], *good[1:]), r"classes must be \(rows, codes\) = \(5, 2\)"),
        ((d.output, d.classes[:, :1], d.continuous), r"classes must be .* \(6, 2\).* not \(6, 1\)"),
        ((d.output, d.classes, d.continuous[:, 0]), r"continuous must be"),
        ((d.output, d.classes.double(), d.continuous), "classes are integers"),
        ((d.output, d.classes, d.continuous.long()), "continuous codes are floating-point"),
        ((d.output.long(), *good[1:]), "output must be floating point"),
        ((d.output[:0], d.classes[:0], d.continuous[:0]), "an empty batch"),
        ((d.output.to("meta"), *good[1:]), "output is on meta, this QHeadLikelihood on cpu"),
    ):
        with pytest.raises(InputError, match=message):
            module(*arguments)
    with pytest.raises(InputError, match="weights are one finite number for each of 5 codes"):
        QHeadLikelihood(MIXED, weights=(1.0,))
    with pytest.raises(InputError, match="reduction is one of none, mean, sum"):
        QHeadLikelihood(MIXED, reduction="median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"from fp32, bf16 or fp16, not from torch\.float64"):
        q_head_log_likelihood(d.output.double(), *good[1:], MIXED, impl="native")
    with pytest.raises(InputError, match=r"counters are int32 \(7,\)"):
        q_head_log_likelihood(*good, MIXED, counted=torch.zeros(7))


def test_a_module_keeps_its_tables_when_it_is_moved_rounded_copied_or_saved(
    tmp_path: Path,
) -> None:
    d = drawn(MIXED, 6)
    module = QHeadLikelihood(MIXED, weights=(0.1,) * 5)
    expected = module(d.output, d.classes, d.continuous)
    wide = module(*in_fp64(d))
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, 0.1 * reference_log_likelihood(*in_fp64(d), MIXED).mean(0))
    assert not module.state_dict()
    torch.save(module, tmp_path / "module.pt")
    for other in (
        copy.deepcopy(module),
        module.half(),
        copy.deepcopy(module).to("meta").to_empty(device="cpu"),
        torch.load(tmp_path / "module.pt", weights_only=False),
    ):
        assert torch.equal(other(d.output, d.classes, d.continuous), expected)
        assert not other.counted.any()


def test_no_codes_at_all() -> None:
    spec = LatentSpec(Noise(4), ())
    module = QHeadLikelihood(spec)
    output = torch.zeros(3, 0, requires_grad=True)
    nothing = (torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 0))
    assert module(output, *nothing).shape == (0,)
    values, gradient = likelihood_with_gradient(output, *nothing, spec)
    assert values.shape == (0,)
    assert gradient.shape == (3, 0)


# --- D's losses and the last layers -------------------------------------------------------------


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_binary_cross_entropy(impl: str, dtype: torch.dtype) -> None:
    logits = (torch.linspace(-9, 9, 60) ** 3 / 50).to(dtype).view(-1, 1).requires_grad_()
    losses = adversarial_losses(logits, (1, 0, 1), impl=impl)
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


def test_losses_in_fp64_are_differentiable_twice() -> None:
    logits = torch.linspace(-3, 3, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: adversarial_losses(x, (1, 0)), logits)
    assert torch.autograd.gradgradcheck(lambda x: adversarial_losses(x, (1, 0)), logits)


@pytest.mark.parametrize("impl", ON_CPU)
def test_logits_that_are_not_finite_are_counted(impl: str) -> None:
    counted = torch.zeros(2, dtype=torch.int32)
    logits = torch.tensor([0.0, math.nan, 1.0, math.inf])
    losses, _ = losses_with_gradient(logits, (1, 0), counted=counted, impl=impl)
    assert counted.tolist() == [2, 0]
    assert losses[0].isnan()


def test_groups_that_do_not_fit_are_told() -> None:
    with pytest.raises(InputError, match="5 logits cannot be cut into 2 equal groups"):
        adversarial_losses(torch.zeros(5), (1, 0))
    with pytest.raises(InputError, match=r"1 \(real\) or 0 \(generated\) for each"):
        adversarial_losses(torch.zeros(4), (1, 2))
    with pytest.raises(InputError, match="2 targets for 1 statistics groups"):
        heads.d_head_objective(
            Deferred(torch.zeros(4, 3), torch.zeros(1, 3, 3)), torch.zeros(1, 3), None, (1, 0)
        )
    with pytest.raises(InputError, match=r"Q's last layer needs rows .* a weight \(29, K\)"):
        heads.q_head_objective(
            Deferred(torch.zeros(4, 3)), torch.zeros(28, 3), None, torch.zeros(4, 2).long(),
            torch.zeros(4, 3), MIXED,
        )  # fmt: skip


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("deferred", [True, False])
def test_last_layers_on_cpu_are_the_composition(impl: str, deferred: bool) -> None:
    source = torch.Generator().manual_seed(1)
    d = drawn(MIXED, 10)
    y = torch.randn(10, 8, generator=source)
    params = torch.randn(2, 3, 8, generator=source) if deferred else None
    for_q = Deferred(y, None if params is None else params[:1], 0.1 if deferred else 1.0)
    for_d = Deferred(y, params, 0.1 if deferred else 1.0)
    q_weight, q_bias = torch.randn(29, 8, generator=source), torch.randn(29, generator=source)
    q = heads.q_head_objective(
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
    for mine, true in zip(q, (output, values, *gradients), strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=2e-4, atol=2e-4)
    weight, d_bias = torch.randn(1, 8, generator=source), torch.randn(1, generator=source)
    found = heads.d_head_objective(for_d, weight, d_bias, (1, 0), 3.0, impl=impl)
    wide = Deferred(y.double(), None if params is None else params.double(), for_d.slope)
    truth = heads.d_head_objective(wide, weight.double(), d_bias.double(), (1, 0), 3.0)
    for mine, true in zip(found, truth, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)


# --- launches, bytes, ahead of time -------------------------------------------------------------


def names(launches: list[Launch]) -> list[str]:
    return [launch.name.removesuffix("_kernel") for launch in launches]


def moved(launches: list[Launch]) -> int:
    return sum(launch.read + launch.written for launch in launches)


def counted_q_head(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[list[Launch], ...]:
    """Q's last layer with its likelihood and gradients up to the large products: fused, and not."""
    spec, rows = experiments.get(name).latents, 128
    width, depth = spec.output_width, 128
    table, counted = code_table(spec, META), counters(spec, META)

    def empty(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=of, device=META)

    y, params = empty(rows, depth, of=dtype), empty(1, 3, depth)
    weight, bias = empty(width, depth), empty(width)
    codes = (empty(rows, len(spec.categorical), of=torch.int64), empty(rows, len(spec.continuous)))
    tables = (table.table, table.bounds, table.ones, counted)
    with recording() as fused:
        heads.fused_q_head(y, params, 0.1, weight, bias, *codes, *tables, False)
    with recording() as apart:
        output = chain.plain_block(
            y[:, None, None], params, 0.1, weight, bias, heads.LINEAR_WINDOW, False, 1, "none", 1.0
        )
        _, gradient = evaluate(output[:, 0, 0], *codes, *tables, table.widest, "mean", "triton")
        g = gradient[:, None, None]
        _, sums = pointwise.enter_gradient(g, Deferred(output), 1, "none")
        chain.bias_gradient(sums, bias)
    return fused, apart


@pytest.mark.parametrize("name", ["mnist", "svhn", "celeba"])
def test_qs_last_layer_is_one_launch_and_moves_little(name: str) -> None:
    fused, apart = counted_q_head(name)
    assert names(fused) == ["q_head"]
    assert names(apart) == ["gather_gemm", "log_likelihood", "enter_gradient", "finalize_backward"]
    assert moved(fused) < 0.8 * moved(apart)


def test_ds_step_is_one_launch() -> None:
    launches = heads.objective_launches(MIXED, torch.bfloat16, 128)
    assert names(launches) == [
        *["log_likelihood"] * 3, "q_head", "adversarial", "d_head", "adversarial", "d_head"
    ]  # fmt: skip
    assert {a.device.type for x in launches for a in x.arguments if isinstance(a, Tensor)} == {
        "meta"
    }


def every_experiments_launches() -> list[Launch]:
    """For `ahead`: the paper's experiments, and the smallest and largest class counts."""
    specs = [experiments.get(name).latents for name in ("mnist", "celeba", "faces")]
    specs.append(spec_of(Categorical(2), Categorical(1000), Continuous("clipped")))
    return [
        launch for spec in specs for launch in heads.objective_launches(spec, torch.bfloat16, 128)
    ]


@pytest.mark.parametrize("target", ahead.TARGETS)
def test_compiled_ahead_of_time(target: str) -> None:
    found = ahead.compiled(target, "test_likelihood", "every_experiments_launches")
    kernels = {"log_likelihood_kernel", "q_head_kernel", "adversarial_kernel", "d_head_kernel"}
    assert {each["kernel"] for each in found} == kernels
    for each in found:
        what = (each["kernel"], each["variant"])
        assert each["stack"] == 0, what
        assert each["f64"] == 0, what
        assert 0 < each["registers"] < 200, what
        assert each["shared"] <= 65_536, what
        if each["kernel"] == "q_head_kernel":
            assert each["matrix"], what
