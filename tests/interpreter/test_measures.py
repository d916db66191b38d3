"""An iteration's measures added up by one program, against torch."""

import pytest
import torch

from fastinfogan.kernels import measures


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
        measures.accumulate(d, g, values, entropies, wrong, sums, tally, by_triton=by_triton)
        assert wrong.item() == 0
        found.append((sums, tally))
    torch.testing.assert_close(*[sums for sums, _ in found])
    assert found[0][1].tolist() == found[1][1].tolist() == ([7, 3, 2] if problems else [8, 2, 0])
