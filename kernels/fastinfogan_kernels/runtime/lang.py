"""Triton where it is installed; elsewhere stand-ins that let every module be imported.

Kernels are written against `tl` and `triton` from here. Without Triton the CPU paths work, and
launching a kernel raises one clear error.
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


class _UncompiledKernel:
    """What `triton.jit` makes of a function when there is no Triton.

    Args:
        fn: the decorated function, never called.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __getitem__(self, grid: object) -> Any:
        raise InputError(MISSING)


if not TRITON_AVAILABLE:
    triton = SimpleNamespace(
        jit=_UncompiledKernel,
        cdiv=lambda a, b: -(-a // b),
        next_power_of_2=lambda n: 1 << max(n - 1, 0).bit_length(),
        __version__="0.0",
    )
    tl = SimpleNamespace(constexpr=lambda value: value)
