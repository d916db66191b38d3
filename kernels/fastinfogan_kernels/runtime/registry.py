"""How an operation is registered, so that torch.compile and meta tensors see it as one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastinfogan_kernels.runtime.launch import is_recording, recording

_library: Any = torch.library.Library("fastinfogan", "DEF")  # type: ignore[no-untyped-call]


def first_tensor(arguments: Sequence[Any]) -> Tensor:
    """The tensor by which an operation's device is known."""
    found = arguments[0]
    return found[0] if isinstance(found, list | tuple) else found  # type: ignore[no-any-return]


def register(schema: str, function: Any) -> Any:
    """Define an operation; its fake is itself with the launches left out.

    Args:
        schema: in torch.library's words, without the namespace.
        function: computes it on CUDA tensors and, under Triton's interpreter or natively, on CPU
            tensors. Its first argument is a tensor, or a list of some.

    Returns:
        The operation, torch.ops.fastinfogan.<name>.default.
    """
    name = schema.partition("(")[0]
    _library.define(schema)

    def on_its_device(*arguments: Any) -> Any:
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device_of(first_tensor(arguments)):  # type: ignore[no-untyped-call]
            return function(*arguments)

    _library.impl(name, on_its_device, "CUDA")
    _library.impl(name, function, "CPU")

    def fake(*arguments: Any) -> Any:
        if is_recording():
            return function(*arguments)
        with recording():
            return function(*arguments)

    torch.library.register_fake(f"fastinfogan::{name}", fake, lib=_library)
    return getattr(torch.ops.fastinfogan, name).default
