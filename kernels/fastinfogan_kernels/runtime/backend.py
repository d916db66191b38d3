"""The implementations of an operation, and the choice between them.

reference: plain torch or NumPy, the definition. native: C++, for CPU tensors, if compiled. triton:
for CUDA tensors, and anywhere under Triton's interpreter, slowly. An implementation asked for by
name that cannot run raises; "auto" takes the fastest that can.
"""

import os
from types import ModuleType
from typing import Literal

import torch

from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.runtime.lang import MISSING, TRITON_AVAILABLE
from fastinfogan_kernels.runtime.launch import is_recording

Implementation = Literal["auto", "reference", "native", "triton"]
Chosen = Literal["reference", "native", "triton"]

_native: ModuleType | None
try:
    from fastinfogan_kernels import _native
except ImportError as error:
    _native = None
    _reason = str(error)
else:
    _reason = ""


def native_available() -> bool:
    """Return whether the C++ extension, fastinfogan_kernels._native, was compiled."""
    return _native is not None


def native_status() -> str:
    """Return one line for `fastinfogan info`."""
    if native_available():
        return "compiled"
    return f"not compiled ({_reason}); install a C++ compiler, then fastinfogan again"


def interpreted() -> bool:
    """Return whether this process runs Triton's kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _is_gpu(device: torch.device) -> bool:
    """CUDA, or meta tensors while launches are recorded."""
    return device.type == "cuda" or (device.type == "meta" and is_recording())


def require_triton(device: torch.device) -> None:
    """Check that Triton's kernels can run on tensors of a device.

    Raises:
        InputError: Triton is not installed, or there is neither a GPU nor the interpreter.
    """
    if not TRITON_AVAILABLE:
        raise InputError(MISSING)
    if not (_is_gpu(device) or interpreted()):
        raise InputError(
            f"impl='triton' needs CUDA tensors, these are on {device}; move model and input to a "
            "GPU, use impl='auto', or set TRITON_INTERPRET=1 to run the kernels slowly anywhere"
        )


def choose(implementation: Implementation, device: torch.device | str = "cpu") -> Chosen:
    """Choose an implementation.

    Args:
        implementation: what was asked for.
        device: of the tensors.

    Raises:
        InputError: what was asked for cannot run here, or is unknown.
    """
    device = torch.device(device)
    if implementation not in ("auto", "reference", "native", "triton"):
        raise InputError(
            f"impl is 'auto', 'reference', 'native' or 'triton', not {implementation!r}"
        )
    if implementation == "auto":
        if _is_gpu(device):
            return "triton" if TRITON_AVAILABLE else "reference"
        return "native" if native_available() and device.type == "cpu" else "reference"
    if implementation == "native":
        if not native_available():
            raise InputError(f"impl='native': fastinfogan_kernels._native is {native_status()}")
        if device.type != "cpu":
            raise InputError(f"impl='native' needs CPU tensors, these are on {device}")
    if implementation == "triton":
        require_triton(device)
    return implementation
