"""Choose an operation's implementation, and launch its kernels.

reference: plain torch or NumPy, the definition. native: C++, for CPU tensors, if compiled. triton:
for CUDA tensors, and anywhere under Triton's interpreter, slowly. An implementation asked for by
name that cannot run raises; "auto" takes the fastest that can.

`launch` runs a Triton kernel; inside `recording()` it records the call instead, so that a whole
chain can run on "meta" tensors without a GPU, and its launches be compiled and counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.runtime.lang import MISSING, TRITON_AVAILABLE, interpreted

Implementation = Literal["auto", "reference", "native", "triton"]
Chosen = Literal["reference", "native", "triton"]
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of the tensors that C++ and Triton kernels compute with; all else is plain torch."""

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


def _is_gpu(device: torch.device) -> bool:
    """Return whether it is CUDA, or meta tensors while launches are recorded."""
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


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: the Triton function.
        grid: programs along each axis.
        arguments: positional, in the kernel's order.
        parameters: constexpr and launch parameters, by name.
        read: bytes of the operands, each once.
        written: bytes of the results, each once.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    parameters: dict[str, Any]
    read: int
    written: int

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.fn.__name__)


_recorder: ContextVar[list[Launch] | None] = ContextVar("recorder", default=None)
_run_too: ContextVar[bool] = ContextVar("run_too", default=True)


@contextmanager
def recording(*, run: bool = False) -> Iterator[list[Launch]]:
    """Record launches instead of running them, or with `run` also run them."""
    launches: list[Launch] = []
    token = _recorder.set(launches)
    run_token = _run_too.set(run)
    try:
        yield launches
    finally:
        _recorder.reset(token)
        _run_too.reset(run_token)


def is_recording() -> bool:
    """Return whether launches are being recorded."""
    return _recorder.get() is not None


def nbytes(*tensors: Tensor | None) -> int:
    """Return the bytes of these tensors, each once."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    read: tuple[Tensor | None, ...],
    written: tuple[Tensor | None, ...],
    **parameters: Any,
) -> None:
    """Launch a kernel.

    Args:
        kernel: the Triton function.
        grid: programs along each axis.
        arguments: what the kernel takes, in its order.
        read: the operands, whose bytes are counted.
        written: the results, likewise.
        parameters: constexpr arguments, num_warps, num_stages.
    """
    # Stated because Triton's default changes in 3.10: a * b + c is one fused multiply-add.
    parameters = {"enable_fp_fusion": True, **parameters}
    launches = _recorder.get()
    if launches is not None:
        launches.append(
            Launch(kernel, grid, arguments, parameters, nbytes(*read), nbytes(*written))
        )
    if launches is None or _run_too.get():
        kernel[grid](*arguments, **parameters)


def run_native(name: str, *arguments: Any) -> None:
    """Run a C++ kernel on CPU tensors; inside `recording()`, where there is no storage, nothing.

    Args:
        name: of a function of fastinfogan_kernels._native; its results are arguments, too.
        arguments: in its order.
    """
    if _recorder.get() is None or _run_too.get():
        getattr(_native, name)(*arguments)
