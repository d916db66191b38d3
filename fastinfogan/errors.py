"""The errors that a user is meant to read, and the checks that raise them."""

import dataclasses
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, Union, get_args, get_origin

from fastinfogan_kernels.errors import InputError, TrainingError

__all__ = [
    "InputError",
    "MissingPackageError",
    "OutOfMemoryError",
    "TrainingError",
    "check_fields",
    "install",
    "reporting_out_of_memory",
    "require",
]


class OutOfMemoryError(InputError):
    """What was asked for does not fit into this machine's memory."""


@contextmanager
def reporting_out_of_memory(advice: str) -> Iterator[None]:
    """Turn the errors of Python's, NumPy's and torch's allocators into one that says what to do.

    Raises:
        OutOfMemoryError: with the advice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch's error for a GPU is a RuntimeError, named here without importing torch; its CPU
        # allocator raises nothing more specific.
        if isinstance(error, RuntimeError) and not (
            type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        ):
            raise
        raise OutOfMemoryError(f"not enough memory; {advice}") from error


def check_fields(instance: Any) -> None:  # noqa: ANN401 - any dataclass
    """Check that a dataclass's fields hold what they are annotated with, as JSON may not.

    Raises:
        InputError: one does not; names the field.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not _is(value, field.type):
            raise InputError(f"{field.name} cannot be {value!r}")


def _is(value: object, kind: Any) -> bool:  # noqa: ANN401 - an annotation
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, types.UnionType):
        return any(_is(value, each) for each in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_is(each, arguments[0]) for each in value)
        return len(value) == len(arguments) and all(map(_is, value, arguments))
    if origin is dict:
        key, entry = arguments
        return isinstance(value, dict) and all(
            _is(k, key) and _is(v, entry) for k, v in value.items()
        )
    if kind in (int, float):
        number = isinstance(value, int) or (kind is float and isinstance(value, float))
        return number and not isinstance(value, bool)
    return isinstance(value, kind)


class MissingPackageError(InputError):
    """An optional package is not installed, or cannot be imported."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its import path, such as "sklearn.metrics".
        extra: the extra of fastinfogan that installs it.
        purpose: what needs it, the subject of the error's sentence.

    Raises:
        MissingPackageError: it cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        absent = (
            isinstance(error, ModuleNotFoundError)
            and (error.name or "").partition(".")[0] == package
        )
        why = "is not installed" if absent else f"cannot be imported ({error})"
        raise MissingPackageError(
            f"{purpose} needs {package}, which {why}; {install(extra)}"
        ) from error


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'fastinfogan[{extra}]'"
