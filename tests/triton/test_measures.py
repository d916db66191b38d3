"""An iteration's measures added up by one program, against torch."""

import pytest
import torch

from fastinfogan_kernels.adam.adam import OVERFLOWED
from fastinfogan_kernels.adam.loss_scale import GROWTH, LossScale
from fastinfogan_kernels.objective import metrics


@pytest.mark.parametrize("codes", [0, 1, 3, 17])
@pytest.mark.parametrize("problems", [0, 5])
def test_sums_and_tally(codes: int, problems: int) -> None:
    found = []
    for by_triton in (True, False):
        source = torch.Generator().manual_seed(1)
        d, g, values, entropies, sums = (
            torch.randn(n, generator=source) for n in (2, 1, codes, codes, 2 + codes)
        )
        tally = torch.tensor([7, 2, 1], dtype=torch.int32)
        wrong = torch.tensor([problems], dtype=torch.int32)
        if problems:
            values.fill_(float("nan"))
        metrics.accumulate(d, g, values, entropies, wrong, sums, tally, by_triton=by_triton)
        assert wrong.item() == 0
        found.append((sums, tally))
    torch.testing.assert_close(*[sums for sums, _ in found])
    assert found[0][1].tolist() == found[1][1].tolist() == ([7, 3, 2] if problems else [8, 2, 0])


@pytest.mark.parametrize(
    ("problems", "scale", "since", "expected", "tally"),
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
def test_the_loss_scale_moves_on(
    problems: int, scale: float, since: float, expected: list[float], tally: list[int]
) -> None:
    """It is halved by an overflow, which alone is no broken iteration, and doubled by patience."""
    d, g, values, entropies = (torch.randn(n) for n in (2, 1, 3, 3))
    for by_triton in (True, False):
        scaled = LossScale([1.0, -0.5, -0.1, 3.0], torch.device("cpu"))
        scaled.state.copy_(torch.tensor([scale, since]))
        sums, counted = torch.zeros(5), torch.tensor([7, 2, 1], dtype=torch.int32)
        wrong = torch.tensor([problems], dtype=torch.int32)
        metrics.accumulate(
            d, g, values, entropies, wrong, sums, counted, scaled, by_triton=by_triton
        )
        assert scaled.state.tolist() == expected
        assert counted.tolist() == tally
        torch.testing.assert_close(scaled.weights, scaled.base * expected[0])


@pytest.mark.parametrize("by_triton", [True, False])
def test_the_counter_counts_on_and_too_many_broken_iterations_stay(by_triton: bool) -> None:
    """A good iteration in front of the next look at the tally hides them no more."""
    d, g, values, entropies = (torch.randn(n) for n in (2, 1, 3, 3))
    sums, counted = torch.zeros(5), torch.zeros(3, dtype=torch.int32)
    wrong, counter = torch.zeros(1, dtype=torch.int32), torch.tensor(2**40)
    found = []
    for problems in (1, 1, 0, 1, 1, 1, 0, 0):
        wrong.fill_(problems)
        metrics.accumulate(
            d, g, values, entropies, wrong, sums, counted, None, counter, by_triton=by_triton
        )
        found.append(counted[2].item())
    assert found == [1, 2, 0, 1, 2, 3, 3, 3]
    assert counter.item() == 2**40 + 8
