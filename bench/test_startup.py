"""How soon something happens: imports, --help, the first iteration; whole processes, by turns."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from bench.accuracy import MismatchError
from bench.cases import Case, Planned
from bench.conftest import Measured

ROOT = Path(__file__).parents[1]
IMPORT_TORCH = ("-c", "import torch")
FIRST = ("-m", "bench.cases.first_iteration")
LOSSES_DIFFER = 0.05
"""Of ours and PyTorch's in 16 bits, on images that the first weights all but ignore."""


def process(*arguments: str, **environment: str) -> Callable[[], str]:
    """A run of Python; what it prints."""

    def run() -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise MismatchError(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
        return done.stdout

    return run


def start(
    name: str,
    ours: Callable[[], str],
    peers: dict[str, Callable[[], str]],
    check: Callable[[], None],
    budget: float = 6.0,
    **more: str,
) -> Planned:
    """A planned case of processes."""
    case = Case("startup", name, ours, peers, check, timed="host", more=more)
    return Planned("startup", name, lambda _: case, budget=budget)


@pytest.mark.short
@pytest.mark.parametrize("module", ["fastinfogan", "fastinfogan.nn", "fastinfogan.engine"])
def test_import(module: str, measured: Measured) -> None:
    ours = process("-c", f"import {module}; print({module}.__name__)")
    peer = process(*IMPORT_TORCH)

    def check() -> None:
        peer()
        if ours().strip() != module:
            raise MismatchError(f"{module} is not what was imported")

    measured(start(f"import {module}", ours, {"import torch": peer}, check, 4.0))


@pytest.mark.short
def test_help(measured: Measured) -> None:
    ours, peer = process("-m", "fastinfogan", "--help"), process(*IMPORT_TORCH)

    def check() -> None:
        peer()
        if "train" not in ours():
            raise MismatchError("--help does not tell of train")

    measured(start("fastinfogan --help", ours, {"import torch": peer}, check, 4.0))


def losses(printed: str) -> list[float]:
    return [float(word) for word in printed.split()]


def test_the_first_iteration(measured: Measured) -> None:
    """From nothing to mnist's first losses, call by call."""
    ours, peer = process(*FIRST, "ours", "eager"), process(*FIRST, "peer")

    def check() -> None:
        for mine, theirs in zip(losses(ours()), losses(peer()), strict=True):
            if not math.isclose(mine, theirs, abs_tol=LOSSES_DIFFER):
                raise MismatchError(f"the first loss is {mine}, PyTorch's {theirs}")

    peers = {"import torch": process(*IMPORT_TORCH), "best": peer}
    measured(start("first iteration of mnist, eager", ours, peers, check, 8.0))


@pytest.fixture(scope="module")
def eager() -> list[float]:
    """The first losses, call by call."""
    return losses(process(*FIRST, "ours", "eager")())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a program was compiled to, by the cold case if that has run."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.parametrize("cache", ["cold", "kept"])
def test_the_first_compiled_iteration(
    cache: str, filled: Path, eager: list[float], tmp_path: Path, measured: Measured
) -> None:
    """The same as torch.compile's program: made anew, or taken from the cache.

    Every run tells its losses, which are compared: one more would take as long as all else here.
    """
    places = count()

    def ours() -> str:
        number = next(places)
        place = filled if cache == "kept" or number == 0 else tmp_path / str(number)
        told = process(
            *FIRST,
            "ours",
            "compiled",
            TORCHINDUCTOR_CACHE_DIR=str(place / "inductor"),
            TRITON_CACHE_DIR=str(place / "triton"),
        )()
        compiled = losses(told)
        if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(eager, compiled, strict=True)):
            raise MismatchError(f"compiled, the first losses are {compiled}, not {eager}")
        return told

    def check() -> None:
        if cache == "kept":
            ours()

    peers = {"import torch": process(*IMPORT_TORCH)}
    name = f"first iteration of mnist, compiled, {cache} cache"
    measured(start(name, ours, peers, check, 10.0))
