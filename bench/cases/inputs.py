"""What cases are made of: random inputs, and a composition as it is and compiled."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.baselines import COMPILED, EAGER, reset_compiled
from bench.timing.clock import Run

BATCH = 128
SEED = 1


def randn(*shape: int, device: torch.device, dtype: torch.dtype, seed: int = SEED) -> Tensor:
    """Draw normal numbers, the same on every device."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source).to(device, dtype)


def with_compiled(
    device: torch.device,
    baseline: Callable[[Callable[..., Any]], Run],
    composed: Callable[..., Any],
) -> dict[str, Any]:
    """Make the baselines of a composition, as it is and on a GPU compiled.

    Args:
        device: where.
        baseline: makes a run of the composition.
        composed: of PyTorch's operations.

    Returns:
        "baselines" and "more" of a case.
    """
    found = {EAGER: baseline(composed)}
    if device.type != "cuda":
        left_out = f"{COMPILED}: seconds of compiling a shape"
        return {"baselines": found, "more": {"left out": left_out}}
    reset_compiled()
    found[COMPILED] = baseline(torch.compile(composed, dynamic=False))
    return {"baselines": found, "more": {}}
