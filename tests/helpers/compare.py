"""Modules compared: output, gradients and buffers after one forward and backward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def everything(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers after one forward and backward.

    Args:
        module: whose parameters and buffers.
        run: the module, or what calls it.
        x: the input; its memory format is preserved.
    """
    module.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = run(x)
    (out * draw(*out.shape, seed=2).to(out.dtype)).sum().backward()
    found = {"out": out.detach(), "x": x.grad}
    found |= {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}
    found |= {k: b.clone() for k, b in module.named_buffers()}
    return found  # type: ignore[return-value]


def tolerance_of(dtype: torch.dtype) -> dict[str, float]:
    """What `assert_same` allows of results in fp64 or fp32."""
    return {"atol": 1e-11, "rtol": 1e-9} if dtype == torch.float64 else {"atol": 2e-5, "rtol": 1e-4}


def assert_same(
    one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-11, rtol: float = 1e-9
) -> None:
    """The same names, and values that differ by rounding alone."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )
