"""What cases are made of: inputs, the truth's dtype, a composition as it is and compiled."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.accuracy import check_accuracy
from bench.baselines import COMPILED, EAGER, forget_compiled
from bench.timing.clock import Run

BATCH = 128
SEED = 1


def randn(*shape: int, device: torch.device, dtype: torch.dtype, seed: int = SEED) -> Tensor:
    """Normal numbers, the same on every device."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source).to(device, dtype)


def true_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the truth: fp64 of fp32; fp32, which is cheap everywhere, of 16 bits."""
    return torch.float64 if dtype == torch.float32 else torch.float32


def with_compiled(
    device: torch.device, peer: Callable[[Callable[..., Any]], Run], composed: Callable[..., Any]
) -> tuple[dict[str, Run], dict[str, str]]:
    """A composition as it is, and on a GPU compiled; and what was left out.

    Args:
        device: where.
        peer: makes a run of the composition.
        composed: of PyTorch's operations.
    """
    if device.type != "cuda":
        return {EAGER: peer(composed)}, {"left out": f"{COMPILED}: seconds of compiling a shape"}
    forget_compiled()
    return {EAGER: peer(composed), COMPILED: peer(torch.compile(composed, dynamic=False))}, {}


def checked(
    ours: Callable[[], dict[str, Tensor]],
    theirs: Callable[[torch.dtype], dict[str, Tensor]],
    dtype: torch.dtype,
) -> None:
    """Check ours against the same composed of torch's operations, in a dtype and in the truth's."""
    check_accuracy(ours(), theirs(dtype), theirs(true_dtype(dtype)), dtype)
