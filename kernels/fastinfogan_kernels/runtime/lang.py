"""Triton where kernels can run; elsewhere stand-ins with which every module can be imported.

Kernels are written against `tl` and `triton` from here. A build of PyTorch without a GPU backend
runs kernels in Triton's interpreter alone, so there Triton, whose import takes a fifth of torch's
time, is imported only for that, or if it has been imported already, for compiling ahead of time.
Without Triton the CPU paths work, and asking for a kernel raises one clear error.
"""

import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch

from fastinfogan_kernels.errors import InputError

__all__ = ["MISSING", "TRITON_AVAILABLE", "interpreted", "tl", "triton"]

MISSING = "Triton is not installed; pip install triton, or use impl='auto' or 'native' on a CPU"
_UNLOADED = "set TRITON_INTERPRET=1, or import triton to compile, before fastinfogan is imported"
TRITON_AVAILABLE = find_spec("triton") is not None
"""Whether Triton is installed."""


def interpreted() -> bool:
    """Return whether this process runs Triton's kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


class _UnloadedKernel:
    """A stand-in for a compiled kernel.

    Args:
        fn: the decorated function, never called.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __getitem__(self, grid: object) -> Any:
        raise InputError(_UNLOADED if TRITON_AVAILABLE else MISSING)

    def warmup(self, *_: object, **__: object) -> Any:
        """Raise, as launching does."""
        self[None]


def _jit(fn: Callable[..., Any] | None = None, **_: Any) -> Any:
    return _UnloadedKernel if fn is None else _UnloadedKernel(fn)


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:  # not installed, or by a distribution of another name
        return "0.0"


_has_gpu_backend = torch.version.cuda is not None or torch.version.hip is not None
if TRITON_AVAILABLE and (_has_gpu_backend or interpreted() or "triton" in sys.modules):
    import triton
    import triton.language as tl
else:
    triton = SimpleNamespace(
        jit=_jit,
        cdiv=lambda a, b: -(-a // b),
        next_power_of_2=lambda n: 1 << max(n - 1, 0).bit_length(),
        __version__=_triton_version(),
    )
    tl = SimpleNamespace(constexpr=lambda value: value)
