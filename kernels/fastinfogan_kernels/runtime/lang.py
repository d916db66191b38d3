"""Triton where it is installed; elsewhere stand-ins with which every module can be imported.

Kernels are written against `tl` and `triton` from here. Without Triton the CPU paths work, and
asking for a kernel raises one clear error.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fastinfogan_kernels.errors import InputError

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    TRITON_AVAILABLE = False
else:
    TRITON_AVAILABLE = True

__all__ = ["MISSING", "TRITON_AVAILABLE", "tl", "triton"]

MISSING = "Triton is not installed; pip install triton, or use impl='auto' or 'native' on a CPU"


class _MissingKernel:
    """Stands in for a compiled kernel.

    Args:
        fn: the decorated function, never called.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __getitem__(self, grid: object) -> Any:
        raise InputError(MISSING)


def _jit(fn: Callable[..., Any] | None = None, **_: Any) -> Any:
    return _MissingKernel if fn is None else _MissingKernel(fn)


if not TRITON_AVAILABLE:
    triton = SimpleNamespace(
        jit=_jit,
        cdiv=lambda a, b: -(-a // b),
        next_power_of_2=lambda n: 1 << max(n - 1, 0).bit_length(),
        __version__="0.0",
    )
    tl = SimpleNamespace(constexpr=lambda value: value)
