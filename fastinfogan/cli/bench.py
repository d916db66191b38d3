"""`fastinfogan bench`: the benchmark suite of a checkout; it is not part of the package."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastinfogan.errors import InputError

SUITES = {"counts": "bench.counting", "parity": "bench.parity"}


@dataclass(frozen=True)
class Bench:
    """Count what one iteration does, or compare training with the reference, in a checkout.

    `fastinfogan bench counts --help` lists a suite's own options.
    """

    suite: Annotated[Literal["counts", "parity"], tyro.conf.Positional]
    """counts: launches, bytes and FLOPs of an iteration; parity: training against the reference."""

    def run(self) -> int:
        """Run the suite without options; the exit code."""
        return run_suite(self.suite, [])


def run_suite(suite: str, arguments: Sequence[str]) -> int:
    """Run a suite of the checkout that holds the current directory; the exit code.

    Raises:
        InputError: the current directory is in no checkout.
    """
    module = f"{SUITES[suite]}.__main__"
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / module.replace(".", "/")).with_suffix(".py").is_file():
            sys.path.insert(0, str(folder))
            code: int = importlib.import_module(module).main(arguments)
            return code
    raise InputError(
        f"bench {suite}: the benchmark suite is in fastinfogan's repository; run this in a checkout"
    )
