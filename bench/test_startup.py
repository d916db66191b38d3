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
from bench.cases import Case
from bench.conftest import Measured

ROOT = Path(__file__).parents[1]
FIRST = ("-m", "bench.cases.first_iteration")
LOSSES_DIFFER = 0.05
"""Of the two losses in 16 bits, on images that the first weights all but ignore."""
Process = Callable[[], str]


def process(*arguments: str, **environment: str) -> Process:
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


IMPORT_TORCH = process("-c", "import torch")


def case(name: str, run: Process, check: Callable[[], None], **baselines: Process) -> Case:
    """Make a case of processes, which `import torch` is a baseline of."""
    found = {"import torch": IMPORT_TORCH, **baselines}
    return Case("startup", name, run, found, check, timed="host")


def check_printed(run: Process, expected: str) -> Callable[[], None]:
    """Make a check that a process prints something, after one that fills the file cache."""

    def check() -> None:
        IMPORT_TORCH()
        if expected not in run():
            raise MismatchError(f"{expected!r} is not printed")

    return check


@pytest.mark.short
@pytest.mark.parametrize("module", ["fastinfogan", "fastinfogan.nn", "fastinfogan.engine"])
def test_import(module: str, measured: Measured) -> None:
    run = process("-c", f"import {module}; print({module}.__name__)")
    measured(case(f"import {module}", run, check_printed(run, module)), 4.0)


@pytest.mark.short
def test_help(measured: Measured) -> None:
    run = process("-m", "fastinfogan", "--help")
    measured(case("fastinfogan --help", run, check_printed(run, "train")), 4.0)


def check_losses(actual: str, expected: str, **tolerance: float) -> None:
    losses, others = ([float(word) for word in text.split()] for text in (actual, expected))
    if not all(math.isclose(a, b, **tolerance) for a, b in zip(losses, others, strict=True)):
        raise MismatchError(f"the first losses are {losses}, expected {others}")


def test_the_first_iteration(measured: Measured) -> None:
    """From nothing to mnist's first losses, in eager mode."""
    run, best = process(*FIRST, "fastinfogan", "eager"), process(*FIRST, "best")

    def check() -> None:
        check_losses(run(), best(), abs_tol=LOSSES_DIFFER)

    measured(case("first iteration of mnist, eager", run, check, best=best), 8.0)


@pytest.fixture(scope="module")
def eager() -> str:
    """Compute the first losses in eager mode."""
    return process(*FIRST, "fastinfogan", "eager")()


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of compiled programs, filled by the cold case."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_the_first_compiled_iteration(
    cache: str, cache_folder: Path, eager: str, tmp_path: Path, measured: Measured
) -> None:
    """In compiled mode: compiled anew, or taken from the cache.

    Every run's losses are compared: one more run would take as long as all else here.
    """
    numbers = count()

    def run() -> str:
        number = next(numbers)
        folder = cache_folder if cache == "warm" or number == 0 else tmp_path / str(number)
        folders = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        environment = {name: str(folder / each) for name, each in folders.items()}
        printed = process(*FIRST, "fastinfogan", "compiled", **environment)()
        check_losses(printed, eager, rel_tol=1e-3)
        return printed

    def check() -> None:
        if cache == "warm":
            run()

    measured(case(f"first iteration of mnist, compiled, {cache} cache", run, check), 10.0)
