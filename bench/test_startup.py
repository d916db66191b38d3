"""Start-up: imports, --help, the first iteration; whole processes, interleaved."""

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
"""Of the two losses in 16 bits, on images that the first weights all but ignore."""


def process(*arguments: str, **environment: str) -> Callable[[], str]:
    """Make a run of Python that returns what it prints."""

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
    run: Callable[[], str],
    baselines: dict[str, Callable[[], str]],
    check: Callable[[], None],
    budget: float = 6.0,
    **more: str,
) -> Planned:
    """Plan a case of processes."""
    case = Case("startup", name, run, baselines, check, timed="host", more=more)
    return Planned("startup", name, lambda _: case, budget=budget)


@pytest.mark.short
@pytest.mark.parametrize("module", ["fastinfogan", "fastinfogan.nn", "fastinfogan.engine"])
def test_import(module: str, measured: Measured) -> None:
    run = process("-c", f"import {module}; print({module}.__name__)")
    baseline = process(*IMPORT_TORCH)

    def check() -> None:
        baseline()
        if run().strip() != module:
            raise MismatchError(f"{module} is not what was imported")

    measured(start(f"import {module}", run, {"import torch": baseline}, check, 4.0))


@pytest.mark.short
def test_help(measured: Measured) -> None:
    run, baseline = process("-m", "fastinfogan", "--help"), process(*IMPORT_TORCH)

    def check() -> None:
        baseline()
        if "train" not in run():
            raise MismatchError("--help does not list train")

    measured(start("fastinfogan --help", run, {"import torch": baseline}, check, 4.0))


def losses(printed: str) -> list[float]:
    return [float(word) for word in printed.split()]


def test_the_first_iteration(measured: Measured) -> None:
    """From nothing to mnist's first losses, in eager mode."""
    run, best = process(*FIRST, "fastinfogan", "eager"), process(*FIRST, "best")

    def check() -> None:
        for actual, expected in zip(losses(run()), losses(best()), strict=True):
            if not math.isclose(actual, expected, abs_tol=LOSSES_DIFFER):
                raise MismatchError(f"the first loss is {actual}, PyTorch's {expected}")

    baselines = {"import torch": process(*IMPORT_TORCH), "best": best}
    measured(start("first iteration of mnist, eager", run, baselines, check, 8.0))


@pytest.fixture(scope="module")
def eager() -> list[float]:
    """The first losses in eager mode."""
    return losses(process(*FIRST, "fastinfogan", "eager")())


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of compiled programs, filled by the cold case."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_the_first_compiled_iteration(
    cache: str, cache_folder: Path, eager: list[float], tmp_path: Path, measured: Measured
) -> None:
    """In compiled mode: compiled anew, or taken from the cache.

    Every run prints its losses, which are compared: one more would take as long as all else here.
    """
    numbers = count()

    def run() -> str:
        number = next(numbers)
        folder = cache_folder if cache == "warm" or number == 0 else tmp_path / str(number)
        printed = process(
            *FIRST,
            "fastinfogan",
            "compiled",
            TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"),
            TRITON_CACHE_DIR=str(folder / "triton"),
        )()
        compiled = losses(printed)
        if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(eager, compiled, strict=True)):
            raise MismatchError(f"compiled, the first losses are {compiled}, not {eager}")
        return printed

    def check() -> None:
        if cache == "warm":
            run()

    baselines = {"import torch": process(*IMPORT_TORCH)}
    name = f"first iteration of mnist, compiled, {cache} cache"
    measured(start(name, run, baselines, check, 10.0))
