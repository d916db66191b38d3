"""Metrics of iterations accumulated by the kernel, and by torch."""

import pytest
import torch

from fastinfogan_kernels.adam.adam import OVERFLOWED
from fastinfogan_kernels.adam.loss_scale import GROWTH, LossScale
from fastinfogan_kernels.objective.metrics import TOO_MANY, accumulate


def measured(codes: int, device: torch.device) -> list[torch.Tensor]:
    """Draw D's losses, G's loss, log-likelihoods and entropies."""
    source = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=source).to(device) for n in (2, 1, codes, codes)]


def counts(*values: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


@pytest.mark.parametrize("codes", [0, 1, 3, 17])
@pytest.mark.parametrize("bad_rows", [0, 5])
def test_sums_and_step_counts(codes: int, bad_rows: int, device: torch.device) -> None:
    found = []
    for by_triton in (True, False):
        d, g, values, entropies = measured(codes, device)
        sums = torch.linspace(-1, 1, 2 + codes, device=device)
        step_counts, non_finite = counts(7, 2, 1, device=device), counts(bad_rows, device=device)
        if bad_rows:
            values.fill_(float("nan"))
        accumulate(d, g, values, entropies, non_finite, sums, step_counts, by_triton=by_triton)
        assert non_finite.item() == 0
        assert step_counts.tolist() == ([7, 3, 2] if bad_rows else [8, 2, 0])
        found.append(sums)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("non_finite", "scale", "since", "state", "step_counts"),
    [
        (0, 64.0, 5.0, [64.0, 6.0], [8, 2, 0]),
        (0, 64.0, GROWTH - 1.0, [128.0, 0.0], [8, 2, 0]),
        (0, 2.0**24, GROWTH - 1.0, [2.0**24, 0.0], [8, 2, 0]),
        (OVERFLOWED, 64.0, 5.0, [32.0, 0.0], [7, 3, 1]),
        (OVERFLOWED, 1.0, 5.0, [1.0, 0.0], [7, 3, 2]),
        (3, 64.0, 5.0, [64.0, 5.0], [7, 3, 2]),
        (3 + OVERFLOWED, 64.0, 5.0, [32.0, 0.0], [7, 3, 2]),
    ],
)
@pytest.mark.parametrize("by_triton", [True, False])
def test_the_loss_scale_follows(
    non_finite: int, scale: float, since: float, state: list[float], step_counts: list[int],
    by_triton: bool, device: torch.device,
) -> None:  # fmt: skip
    """Overflow halves it, and is no failure by itself; enough good iterations double it."""
    scaled = LossScale([1.0, -0.5, -0.1, 3.0], device)
    scaled.state.copy_(torch.tensor([scale, since]))
    counted = counts(7, 2, 1, device=device)
    accumulate(
        *measured(3, device), counts(non_finite, device=device), torch.zeros(5, device=device),
        counted, scaled, by_triton=by_triton,
    )  # fmt: skip
    assert scaled.state.tolist() == state
    assert counted.tolist() == step_counts
    torch.testing.assert_close(scaled.weights, scaled.base * state[0])


@pytest.mark.parametrize("by_triton", [True, False])
def test_too_many_skipped_iterations_stay_counted(by_triton: bool, device: torch.device) -> None:
    """A good iteration before the next read does not hide them. The iteration number goes up."""
    arguments, sums = measured(3, device), torch.zeros(5, device=device)
    step_counts, non_finite = counts(0, 0, 0, device=device), counts(0, device=device)
    counter = torch.tensor(2**40, device=device)
    found = []
    for bad_rows in (1, 1, 0, 1, 1, 1, 0, 0):
        non_finite.fill_(bad_rows)
        accumulate(*arguments, non_finite, sums, step_counts, None, counter, by_triton=by_triton)
        found.append(step_counts[2].item())
    assert found == [1, 2, 0, 1, 2, TOO_MANY, TOO_MANY, TOO_MANY]
    assert counter.item() == 2**40 + 8
