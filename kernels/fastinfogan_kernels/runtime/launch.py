"""Launch kernels; launches and their bytes can be recorded on any machine.

`launch` runs a kernel; inside `recording()` it records the call instead, so that a whole chain can
run on "meta" tensors without a GPU, and its launches be compiled and counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor


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
        from fastinfogan_kernels import _native

        getattr(_native, name)(*arguments)
