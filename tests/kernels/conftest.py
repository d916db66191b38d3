"""Which implementation of the CPU computes: plain torch or NumPy, or C++ by one instruction set."""

from collections.abc import Iterator

import pytest

from fastinfogan_kernels.runtime.launch import Implementation, native_available

if native_available():
    from fastinfogan_kernels import _native

    INSTRUCTION_SETS = _native.instruction_sets()
else:
    INSTRUCTION_SETS = [pytest.param("", marks=pytest.mark.skip(reason="_native not compiled"))]


def _by(instruction_set: str) -> Iterator[Implementation]:
    best = _native.instruction_set()
    _native.use_instruction_set(instruction_set)
    assert _native.instruction_set() == instruction_set
    yield "native"
    _native.use_instruction_set(best)


# Set up for each test, as one of function scope is; Hypothesis refuses that for its own examples.
@pytest.fixture(scope="class", params=INSTRUCTION_SETS)
def native(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """C++ by each instruction set of this machine."""
    yield from _by(request.param)


@pytest.fixture(scope="class", params=["reference", *INSTRUCTION_SETS])
def impl(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """The reference, and C++ by each instruction set of this machine."""
    if request.param == "reference":
        yield "reference"
    else:
        yield from _by(request.param)
