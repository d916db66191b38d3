"""The precisions of blocks on a CPU: fp64 is computed by the reference, fp32 by C++ if compiled."""

import pytest
import torch


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of the blocks and their input."""
    dtype: torch.dtype = request.param
    return dtype
