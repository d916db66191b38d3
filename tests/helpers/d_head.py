"""Checks of D's last layer with its losses that every implementation passes, on any device."""

import math

import torch

from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.objective.d_head import DHeadResult, d_head_objective
from fastinfogan_kernels.runtime.launch import Implementation
from tests.helpers.specs import assert_as_good

D_SHAPES = [(1, 1, 16), (2, 37, 70), (2, 128, 1024), (3, 5, 600), (1, 516, 16)]
"""Statistics groups, rows in each, features."""


def check_d_head(
    groups: int,
    rows: int,
    depth: int,
    impl: Implementation,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Compare losses and gradient with fp64, and torch's in the same dtype with fp64."""
    source = torch.Generator().manual_seed(depth)
    y = torch.randn(groups * rows, depth, generator=source).to(device, dtype)
    params = torch.randn(groups, 3, depth, generator=source).to(device)
    weight = (torch.randn(1, depth, generator=source) * 3 / depth**0.5).to(device)
    bias = torch.randn(1, generator=source).to(device)
    counters = torch.zeros(2, dtype=torch.int32, device=device)

    def run(dtype: torch.dtype, impl: Implementation) -> DHeadResult:
        wide = torch.promote_types(dtype, torch.float32)
        return d_head_objective(
            Deferred(y.to(dtype), params.to(wide), 0.1), weight.to(wide), bias.to(wide),
            (1, 0, 1)[:groups], 2.5, counters=counters, impl=impl,
        )  # fmt: skip

    truth, baseline = run(torch.float64, "reference"), run(dtype, "reference")
    for _ in range(2):
        actual = run(dtype, impl)
    assert not counters.any()
    assert actual.gradient.dtype == dtype
    for one, torchs, true in zip(actual, baseline, truth, strict=True):
        assert_as_good(one, torchs, true, 3e-6 if dtype == torch.float32 else 1e-3)


def check_non_finite_logits(impl: Implementation, device: torch.device) -> None:
    """They are counted, and their group's loss is NaN."""
    counters = torch.zeros(2, dtype=torch.int32, device=device)
    rows = torch.zeros(40, 1, device=device)
    rows[[5, 19], 0] = torch.tensor([math.nan, -math.inf], device=device)
    weight = torch.ones(1, 1, device=device)
    found = d_head_objective(Deferred(rows), weight, None, (1, 0), counters=counters, impl=impl)
    assert counters.tolist() == [2, 0]
    assert found.losses[0].isnan()
    assert found.losses[1].isfinite()
