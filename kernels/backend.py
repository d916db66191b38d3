"""Which implementations of an op this installation has: "reference" always, "native" if compiled.

An implementation asked for by name that cannot run raises; "auto" takes the fastest that can.
"""

from types import ModuleType
from typing import Literal

from fastinfogan.errors import InputError

Implementation = Literal["auto", "reference", "native"]

_native: ModuleType | None
try:
    from fastinfogan import _native
except ImportError as error:
    _native = None
    _reason = str(error)
else:
    _reason = ""


def native_available() -> bool:
    """Whether fastinfogan._native was compiled when this installation was made."""
    return _native is not None


def native_status() -> str:
    """One line for `fastinfogan info`."""
    if native_available():
        return "compiled"
    return f"not compiled ({_reason}); install a C++ compiler, then fastinfogan again"


def choose(implementation: Implementation) -> Literal["reference", "native"]:
    """Settle "auto".

    Raises:
        InputError: "native" was asked for and is not compiled, or the name is unknown.
    """
    if implementation not in ("auto", "reference", "native"):
        raise InputError(f"impl is 'auto', 'reference' or 'native', not {implementation!r}")
    if implementation == "auto":
        return "native" if native_available() else "reference"
    if implementation == "native" and not native_available():
        raise InputError(f"impl='native': fastinfogan._native is {native_status()}")
    return implementation
