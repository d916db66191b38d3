"""Optional packages: imported on first use; where one is missing, the error names its extra."""

from importlib import import_module
from types import ModuleType

from fastinfogan.errors import InputError


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
