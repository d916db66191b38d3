"""A process that times the cases of this tree's bench/ on another tree's packages.

    python -m bench.compare.worker TREE

Commands are read from stdin, one JSON object a line, and each is answered by one on stdout; what
the cases print goes to stderr. Nothing of fastinfogan is imported before the tree is first in line.
"""

import importlib
import json
import os
import statistics
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MODULES = ("bench.cases.iteration", "bench.cases.blocks", "bench.cases.ops")
_STRETCH = 10e-3
"""Seconds of a round, about: short runs are repeated, and the median is taken."""
_MOST = 5
"""Repetitions of a round at the most."""
_WARM = 50e-3
"""A run as short as this is preceded by an untimed one: the other tree has emptied the caches."""
_PAUSE = 2e-3
"""Seconds before a round, in which the other process's threads fall asleep."""

Answer = dict[str, Any]


class Worker:
    """What can be asked of a tree."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree.resolve()
        self._cases: dict[str, Any] = {}
        self._stretch: Any = None
        self._case: Any = None
        self._once = 0.0

    def plan(self) -> Answer:
        """List the cases that can be made; `short` by key."""
        for name in ("fastinfogan", "fastinfogan_kernels"):
            file = Path(str(importlib.import_module(name).__file__)).resolve()
            if not file.is_relative_to(self._tree):
                raise RuntimeError(f"{file} is not of {self._tree}")
        for name in MODULES:
            for case in importlib.import_module(name).planned(_device()):
                self._cases[f"{case.group}/{case.name}"] = case
        return {"short": {key: case.short for key, case in self._cases.items()}}

    def prepare(self, case: str) -> Answer:
        """Make a case and warm it up; the seconds of one run."""
        from bench.timing.clock import clock_for

        self.release()
        made = self._cases[case].make(_device())
        clock, steady = clock_for(_device()), made.timed == "steady"
        self._stretch, self._case = clock.prepare(made.run, steady=steady), made
        self._stretch.leave_warm()  # alike in both processes
        self._once = self._stretch.seconds()
        return {"seconds": self._once}

    def time(self) -> Answer:
        """Time one round; the median seconds of one unit of the case."""
        time.sleep(_PAUSE)
        if self._once < _WARM:
            self._case.run()
        stretch = self._once * self._stretch.repeat
        repetitions = max(1, min(_MOST, round(_STRETCH / max(stretch, 1e-9))))
        seconds = [self._stretch.seconds() for _ in range(repetitions)]
        return {"seconds": statistics.median(seconds) / self._case.units}

    def release(self) -> Answer:
        if self._stretch is not None:
            self._stretch.release()
        self._stretch = self._case = None
        return {}


def _device() -> Any:  # noqa: ANN401 - torch is not imported at the top
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(tree: str) -> None:
    """Run commands from stdin until it is closed."""
    sys.path[:0] = [tree, str(Path(tree) / "kernels")]
    sys.meta_path.insert(0, PathFinder)  # before the finder of an editable installation
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker(Path(tree))
    for line in sys.stdin:
        command = json.loads(line)
        function: Callable[..., Answer] = getattr(worker, command.pop("do"))
        try:
            answer = function(**command)
        except Exception as error:  # whatever this tree's code raises
            answer = {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
