"""Register operations, so that torch.compile and meta tensors see each as one call."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastinfogan_kernels.runtime.launch import is_recording, recording

R = TypeVar("R")

_library: Any = torch.library.Library("fastinfogan", "DEF")  # type: ignore[no-untyped-call]


def first_tensor(arguments: Sequence[Any]) -> Tensor:
    """Return the tensor on whose device an operation runs: the first argument, or first of it."""
    found = arguments[0]
    return found[0] if isinstance(found, list | tuple) else found  # type: ignore[no-any-return]


def register(
    name: str, *, mutates_args: Iterable[str] = ()
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Define the operation torch.ops.fastinfogan.<name>; its schema is the function's signature.

    The decorated function computes it on CUDA tensors and, under Triton's interpreter or natively,
    on CPU tensors. Its first argument is a tensor or a list of them. The operation's fake is the
    function with its launches left out.

    Args:
        name: of the operation.
        mutates_args: names of the arguments that are written in place.

    Returns:
        A decorator, which returns the operation.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        schema = torch.library.infer_schema(function, op_name=name, mutates_args=mutates_args)
        # infer_schema makes each int symbolic; grids and constexpr arguments need its value.
        operation: Callable[..., R] = _define(name, schema.replace("SymInt", "int"), function)
        return operation

    return decorate


def _define(name: str, schema: str, function: Callable[..., Any]) -> Any:
    _library.define(schema)

    def on_its_device(*arguments: Any) -> Any:
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device_of(first_tensor(arguments)):  # type: ignore[no-untyped-call]
            return function(*arguments)

    def fake(*arguments: Any) -> Any:
        if is_recording():
            return function(*arguments)
        with recording():
            return function(*arguments)

    # define and impl, not custom_op: half its time per call.
    _library.impl(name, on_its_device, "CUDA")
    _library.impl(name, function, "CPU")
    torch.library.register_fake(f"fastinfogan::{name}", fake, lib=_library)
    return getattr(torch.ops.fastinfogan, name).default
