"""Both trees' cases timed alternately, by a worker process each."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import IO, Any, Self

from bench.compare.paired import Comparison, compare_times
from bench.timing.rows import duration

_SLOW = 1.0
"""Seconds of a run from which a case is timed only if asked for by name."""


class WorkerError(RuntimeError):
    """A worker process ended."""


class CaseError(RuntimeError):
    """A tree cannot do a case, or list its cases."""


class WorkerProcess:
    """A process that times one tree's cases; a context that ends it.

    Args:
        name: "base" or "head".
        tree: whose packages are imported.
        root: the tree whose bench/ is run.
    """

    def __init__(self, name: str, tree: Path, root: Path) -> None:
        self.name, self.tree = name, tree
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.compare.worker", str(tree)],
            cwd=root,
            # Each thread of OpenMP stays on a processor: two may otherwise share one for long.
            env={"OMP_PROC_BIND": "true", "PYTHONHASHSEED": "0"} | os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, do: str, **arguments: str) -> dict[str, Any]:
        """Send a command to `worker.Worker`, and return its answer.

        Raises:
            CaseError: it failed.
            WorkerError: the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise WorkerError(f"{self.name} ended with code {self._process.wait()}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise CaseError(f"{self.name}: {answer['failed']}")
        return answer


@dataclass(frozen=True)
class Timed:
    """What became of a case.

    Attributes:
        key: group and name.
        outcome: "regression", "not confirmed", "faster" or "no difference"; "failed" if head has
            it no longer or fails, "not comparable" if base has it not, "left out" if it is slow.
        base: median seconds.
        head: median seconds.
        first: the first set of rounds.
        second: another one, if head was slower in the first.
        note: why there are no times.
    """

    key: str
    outcome: str
    base: float = 0.0
    head: float = 0.0
    first: Comparison | None = None
    second: Comparison | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.first is None:
            return f"{'-':>9} {'-':>9}  {self.key}: {self.outcome} ({self.note})"
        again = f", then {self.second.ratio.median:.3f}" if self.second else ""
        outcome = self.outcome.upper() if self.outcome == "regression" else self.outcome
        times = f"{duration(self.base):>9} {duration(self.head):>9}"
        return f"{times}  {self.first.ratio}  {self.key}: {outcome}{again}"


def time_all(
    base: Path, root: Path, rounds: int, chosen: Callable[[str, bool], bool], *, slow: bool
) -> list[Timed]:
    """Time the chosen cases on both trees, and the suspects once more by new processes.

    Args:
        base: the base's tree.
        root: the working tree.
        rounds: of each case.
        chosen: whether to time a case, by its key and whether it is one of the short set.
        slow: also those that take seconds.

    Raises:
        CaseError: a worker cannot list its cases.
        WorkerError: a worker ended.
    """
    found: dict[str, Timed] = {}
    with _workers(base, root) as (workers, has, short):
        for key in short:
            if not chosen(key, short[key]):
                continue
            progress(key)
            if key in has:
                found[key] = _time(workers, key, rounds, slow=slow)
            else:
                found[key] = Timed(key, "not comparable", note="base has no such case")
    suspects = [each for each in found.values() if each.outcome == "not confirmed"]
    if suspects:
        with _workers(base, root) as (workers, _, _):
            for first in suspects:
                progress(f"{first.key}, once more")
                again = _time(workers, first.key, rounds)
                if again.first is not None:
                    slower = again.first.verdict == "slower"
                    outcome = "regression" if slower else "not confirmed"
                    again = replace(first, outcome=outcome, second=again.first)
                found[first.key] = again
    return list(found.values())


Workers = tuple[WorkerProcess, WorkerProcess]
ShortByKey = dict[str, bool]


@contextmanager
def _workers(base: Path, root: Path) -> Iterator[tuple[Workers, ShortByKey, ShortByKey]]:
    """Start both workers; give the cases of each, and whether they are of the short set."""
    with WorkerProcess("base", base, root) as before, WorkerProcess("head", root, root) as now:
        yield (before, now), before.ask("plan")["short"], now.ask("plan")["short"]


def _time(workers: Workers, key: str, rounds: int, *, slow: bool = True) -> Timed:
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    try:
        for worker in workers:
            once = worker.ask("prepare", case=key)["seconds"]
            if once > _SLOW and not slow:
                return Timed(key, "left out", note=f"over {_SLOW:g} s a run; -k times it")
        for number in range(rounds):
            for worker in workers if number % 2 == 0 else workers[::-1]:
                seconds[worker.name].append(worker.ask("time")["seconds"])
        for worker in workers:
            worker.ask("release")
    except CaseError as error:
        outcome = "failed" if str(error).startswith("head") else "not comparable"
        return Timed(key, outcome, note=str(error))
    comparison = compare_times(seconds["base"], seconds["head"])
    outcome = "not confirmed" if comparison.verdict == "slower" else comparison.verdict
    return Timed(key, outcome, median(seconds["base"]), median(seconds["head"]), comparison)


def progress(text: str) -> None:
    """Write over one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)
