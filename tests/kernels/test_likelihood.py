"""The objective on its own: the definition, the module, native code; others' formulas."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastinfogan.errors import InputError
from fastinfogan.nn import QHeadLikelihood
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise
from fastinfogan_kernels.objective.code_layout import code_table, entries, make_counters
from fastinfogan_kernels.objective.likelihood import (
    REDUCTIONS,
    Reduction,
    likelihood_with_gradient,
    log_likelihood_op,
    q_head_log_likelihood,
    reference_log_likelihood,
)
from fastinfogan_kernels.runtime.launch import Implementation, native_available
from tests.helpers.likelihood import (
    check_derivatives,
    check_extremes,
    check_invalid_data,
    check_likelihood,
)
from tests.helpers.specs import MIXED, WEIGHTS, Drawn, any_codes, drawn, spec_of

ON_CPU = ["reference", *(["native"] if native_available() else [])]


def in_fp64(d: Drawn) -> tuple[Tensor, Tensor, Tensor]:
    return d.output.double(), d.classes, d.continuous.double()


# --- the definition -----------------------------------------------------------------------------


@settings(max_examples=40)
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
    categorical = torch.distributions.Categorical(logits=output[:, 3:73])
    torch.testing.assert_close(found[:, 1], categorical.log_prob(classes[:, 1]))
    normal = torch.distributions.Normal(output[:, 73], output[:, 76].exp())
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
        [0, 0, 3, 0], [0, 3, 70, 1], [1, 73, 76, 0], [2, 74, 77, 1], [1, 75, 78, 2]
    ]  # fmt: skip
    assert table.owners.tolist() == [0] * 3 + [1] * 70 + [2, 3, 4, 2, 3, 4]
    assert table.widest == 70
    assert table.bounds[:4].tolist() == [[-math.inf, math.inf]] * 4
    torch.testing.assert_close(table.bounds[4].exp(), torch.tensor([0.5, 2.0]))
    assert entries(MIXED)[4].high == math.log(2.0)
    assert code_table(copy.deepcopy(MIXED), torch.device("cpu")) is table


# --- kernels on CPU -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_native_is_as_good_as_torch(
    native: Implementation, reduction: Reduction, dtype: torch.dtype
) -> None:
    d = drawn(MIXED, 133, spread=1.0)
    check_likelihood(d, native, dtype=dtype, weights=WEIGHTS, reduction=reduction)


@settings(max_examples=40)
@given(any_codes(), st.integers(1, 40), st.integers(0, 2**31))
def test_native_of_any_mix(native: Implementation, spec: LatentSpec, rows: int, seed: int) -> None:
    check_likelihood(drawn(spec, rows, seed, spread=1.0), native)


def test_extremes_stay_finite_and_exact(impl: Implementation) -> None:
    check_extremes(impl)


def test_invalid_classes_and_rows_are_counted_and_become_nan(impl: Implementation) -> None:
    check_invalid_data(impl)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_first_and_second_derivatives(impl: Implementation, reduction: Reduction) -> None:
    check_derivatives(impl, reduction)


@pytest.mark.skipif(not native_available(), reason="fastinfogan_kernels._native was not compiled")
def test_opcheck() -> None:
    d = drawn(MIXED, 5)
    table = code_table(MIXED, torch.device("cpu"))
    tensors = (d.output, d.classes, d.continuous, table.table, table.bounds, table.ones)
    for reduction in REDUCTIONS:
        torch.library.opcheck(
            log_likelihood_op, (*tensors, make_counters(MIXED), table.widest, reduction, "native")
        )


# --- the module ---------------------------------------------------------------------------------


def test_reductions_and_weights(impl: Implementation) -> None:
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
    backend = "inductor" if (impl, reduction) == (ON_CPU[-1], "mean") else "aot_eager"
    compiled = torch.compile(network, fullgraph=True, backend=backend)
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


def test_invalid_data_raise_at_once_on_cpu() -> None:
    d = drawn(MIXED, 6)
    module = QHeadLikelihood(MIXED)
    classes, output = d.classes.clone(), d.output.clone()
    classes[4, 1] = -1
    with pytest.raises(InputError, match=r"^row 4: class -1 of c2 is not in \[0, 70\)$"):
        module(d.output, classes, d.continuous)
    for column, name in ((2, "c1"), (73, "c3"), (78, "c5")):
        output = d.output.clone()
        output[5, column] = math.nan
        with pytest.raises(
            InputError, match=rf"^row 5: Q's output for {name}, column {column}, is nan$"
        ):
            module(output, d.classes, d.continuous)
    module.check()


def test_invalid_arguments() -> None:
    d = drawn(MIXED, 6)
    module = QHeadLikelihood(MIXED)
    good = (d.output, d.classes, d.continuous)
    for arguments, message in (
        (
            (d.output[:, 1:], *good[1:]),
            r"must be \(rows, 79\).*73 logits.* it is \(6, 78\)",
        ),
        ((d.output[:5], *good[1:]), r"classes must be \(rows, codes\) = \(5, 2\)"),
        ((d.output, d.classes[:, :1], d.continuous), r"classes must be .* \(6, 2\).* not \(6, 1\)"),
        ((d.output, d.classes, d.continuous[:, 0]), r"continuous must be"),
        ((d.output, d.classes.double(), d.continuous), "classes must be integers"),
        ((d.output, d.classes, d.continuous.long()), "continuous must be floating point"),
        ((d.output.long(), *good[1:]), "output must be floating point"),
        ((d.output[:0], d.classes[:0], d.continuous[:0]), "an empty batch"),
        ((d.output.to("meta"), *good[1:]), "output is on meta, this QHeadLikelihood on cpu"),
    ):
        with pytest.raises(InputError, match=message):
            module(*arguments)
    with pytest.raises(InputError, match="weights must be one finite number for each of 5 codes"):
        QHeadLikelihood(MIXED, weights=(1.0,))
    with pytest.raises(InputError, match="reduction must be one of none, mean, sum"):
        QHeadLikelihood(MIXED, reduction="median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"from fp32, bf16 or fp16, not from torch\.float64"):
        q_head_log_likelihood(d.output.double(), *good[1:], MIXED, impl="native")
    with pytest.raises(InputError, match=r"counters must be int32 \(7,\)"):
        q_head_log_likelihood(*good, MIXED, counters=torch.zeros(7))


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
        assert not other.counters.any()


def test_tables_made_in_inference_or_while_tracing_serve_training() -> None:
    """Tables are cached; those of inference mode could not be saved, fake ones hold no numbers."""
    spec = spec_of(Categorical(7), Continuous("clipped", (0.25, 3.0)))
    d = drawn(spec, 4)
    with torch.inference_mode():
        expected = q_head_log_likelihood(d.output, d.classes, d.continuous, spec, weights=(3, 4))
    with FakeTensorMode(allow_non_fake_inputs=True):
        code_table(spec_of(Categorical(8)), torch.device("cpu"))
    output = d.output.requires_grad_()
    values = q_head_log_likelihood(output, d.classes, d.continuous, spec, weights=(3, 4))
    values.sum().backward()
    assert torch.equal(values, expected)
    assert code_table(spec_of(Categorical(8)), torch.device("cpu")).table.tolist() == [[0, 0, 8, 0]]


def test_no_codes_at_all() -> None:
    spec = LatentSpec(Noise(4), ())
    module = QHeadLikelihood(spec)
    output = torch.zeros(3, 0, requires_grad=True)
    nothing = (torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 0))
    assert module(output, *nothing).shape == (0,)
    values, gradient = likelihood_with_gradient(output, *nothing, spec)
    assert values.shape == (0,)
    assert gradient.shape == (3, 0)
