"""D's losses, the heads' last layers with their objective, and what the kernels are compiled to."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from bench.compiled import META
from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan_kernels.conv_block import ops
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.latents import Categorical, Continuous
from fastinfogan_kernels.objective import heads
from fastinfogan_kernels.objective.adversarial import adversarial_losses, losses_with_gradient
from fastinfogan_kernels.objective.code_layout import code_table
from fastinfogan_kernels.objective.likelihood import (
    evaluate,
    q_head_log_likelihood,
)
from fastinfogan_kernels.objective.targets import counters
from fastinfogan_kernels.runtime.backend import native_available
from fastinfogan_kernels.runtime.launch import Launch, recording
from tests.helpers import ahead
from tests.helpers.specs import drawn, spec_of

MIXED = spec_of(
    Categorical(3),
    Categorical(20),
    Continuous(),
    Continuous("fixed"),
    Continuous("clipped", (0.5, 2.0)),
)
WEIGHTS = (1.0, 2.0, 0.5, 0.1, 10.0)
ON_CPU = ["reference", *(["native"] if native_available() else [])]


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
        fused_layer = (y, params, 0.1, weight, bias)
        heads.fused_q_head(*fused_layer, *codes, *tables, table.widest, False, "triton")
    with recording() as apart:
        output = ops.plain_block(
            y[:, None, None], params, 0.1, weight, bias, heads.LINEAR_WINDOW, False, 1, "none", 1.0
        )
        _, gradient = evaluate(output[:, 0, 0], *codes, *tables, table.widest, "mean", "triton")
        g = gradient[:, None, None]
        ops.act_backward_reduce(g, output, None, 1, "none", 1.0, None, None, bias)
    return fused, apart


@pytest.mark.parametrize("name", ["mnist", "svhn", "celeba"])
def test_qs_last_layer_is_one_launch_and_moves_little(name: str) -> None:
    fused, apart = counted_q_head(name)
    assert names(fused) == ["q_head"]
    assert names(apart) == ["implicit_gemm", "log_likelihood", "act_backward_reduce"]
    assert moved(fused) < 0.8 * moved(apart)


def test_ds_step_is_one_launch() -> None:
    launches = heads.objective_launches(MIXED, torch.bfloat16, 128)
    assert names(launches) == [
        *["log_likelihood"] * 3, "q_head", "adversarial", "d_head", "adversarial", "d_head"
    ]  # fmt: skip
    assert {a.device.type for x in launches for a in x.arguments if isinstance(a, Tensor)} == {
        "meta"
    }


MERGED = """
from fastinfogan import experiments
from fastinfogan_kernels.objective.heads import objective_launches
from bench.compiled import compile_launches
from torch import bfloat16
launches = objective_launches(experiments.get("mnist").latents, bfloat16, 1024)
for launch in launches[1:]:
    compile_launches([launch], "sm_90")
    kernel = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.parameters)
    lines = kernel.asm["ptx"].splitlines()
    kinds = {"st.global": "part", "bar.sync": "barrier"}
    kinds |= {"acq_rel.add": "ticket", "ld.global.cg": "merge"}
    found = [kind for line in lines for text, kind in kinds.items() if text in line]
    print(launch.name, " ".join(found))
"""


def test_tickets_are_taken_behind_a_barrier_and_parts_read_past_the_first_cache() -> None:
    """What the interpreter, one program after another, cannot show of the merge."""
    done = subprocess.run(
        [sys.executable, "-c", MERGED],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    told = done.stdout.splitlines()
    assert len(told) == 7
    for line in told:
        before, taken, after = line.partition(" barrier ticket barrier barrier ")
        assert taken, line
        assert before.split()[-1] == "part", line
        assert "merge" in after, line
        assert "merge" not in before, line


def every_experiments_launches() -> list[Launch]:
    """For `ahead`: the paper's experiments, and the smallest and largest class counts."""
    specs = [experiments.get(name).latents for name in ("mnist", "celeba", "faces")]
    specs.append(spec_of(Categorical(2), Categorical(1000), Continuous("clipped")))
    return [
        launch for spec in specs for launch in heads.objective_launches(spec, torch.bfloat16, 128)
    ]


@pytest.mark.parametrize("target", ahead.TARGETS)
def test_compiled_ahead_of_time(target: str) -> None:
    found = ahead.compiled(target, "test_heads", "every_experiments_launches")
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
