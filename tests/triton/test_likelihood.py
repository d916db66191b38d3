"""The likelihood's kernel against fp64: any mix of codes, odd batches, extremes, invalid data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan.nn import QHeadLikelihood
from fastinfogan_kernels.latents import Categorical, LatentSpec
from fastinfogan_kernels.objective.code_layout import code_table, make_counters
from fastinfogan_kernels.objective.likelihood import (
    REDUCTIONS,
    Reduction,
    log_likelihood_op,
)
from fastinfogan_kernels.runtime.launch import recording
from tests.helpers.likelihood import (
    check_derivatives,
    check_extremes,
    check_invalid_data,
    check_likelihood,
    evaluate,
)
from tests.helpers.specs import MIXED, WEIGHTS, any_codes, drawn, spec_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN in the kernels


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [1, 7, 128, 301])
def test_mixed_codes(rows: int, reduction: str, device: torch.device, dtype: torch.dtype) -> None:
    d = drawn(MIXED, rows, spread=1.0)
    check_likelihood(d, "triton", device, dtype, reduction=reduction, weights=WEIGHTS)


@settings(max_examples=15)
@given(any_codes(), st.integers(1, 40), st.integers(0, 2**31))
def test_any_mix_of_codes(device: torch.device, spec: LatentSpec, rows: int, seed: int) -> None:
    check_likelihood(drawn(spec, rows, seed), "triton", device)


@pytest.mark.parametrize("classes", [2, 1000])
def test_smallest_and_largest_class_counts(classes: int, device: torch.device) -> None:
    check_likelihood(drawn(spec_of(Categorical(classes)), 9), "triton", device)


def test_extremes_stay_finite_and_exact(device: torch.device) -> None:
    check_extremes("triton", device)


def test_many_tiles_are_merged_and_leave_the_counters_zero(device: torch.device) -> None:
    d = drawn(MIXED, 300)
    counters = make_counters(MIXED, device)
    with recording(run=True) as launches:
        found = [evaluate(d, "triton", device, counters=counters) for _ in range(2)]
    assert all(launch.grid[0] > 8 and launch.parameters["MERGE"] for launch in launches)
    assert not counters.any()
    for values, gradient in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(gradient, found[0][1])


def test_invalid_classes_and_rows_are_counted_and_become_nan(device: torch.device) -> None:
    check_invalid_data("triton", device)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_first_and_second_derivatives(reduction: Reduction, device: torch.device) -> None:
    check_derivatives("triton", reduction, device)


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
            evaluate(d, "triton", device)
        seen |= {tuple(sorted(launch.parameters.items())) for launch in launches}
    assert len(seen) == 1
