"""Both trees' cases timed alternately, by a worker process each."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, do: str, **arguments: str) -> dict[str, Any]:
        """Have a command of `worker.Worker` done, and return its answer.

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
            said = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise WorkerError(f"{self.name} ended with code {self._process.wait()}: {said}")
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
        ratio = self.first.ratio
        again = f", then {self.second.ratio.median:.3f}" if self.second else ""
        outcome = self.outcome.upper() if self.outcome == "regression" else self.outcome
        return (
            f"{duration(self.base):>9} {duration(self.head):>9}  {ratio.median:.3f} "
            f"({ratio.low:.3f} to {ratio.high:.3f})  {self.key}: {outcome}{again}"
        )


Chosen = Callable[[str, bool], bool]
"""Whether to time a case, by its key and whether it is one of the short set."""


def time_all(base: Path, root: Path, rounds: int, chosen: Chosen, *, slow: bool) -> list[Timed]:
    """Time the chosen cases on both trees, and the suspects once more by new processes.

    Args:
        base: the base's tree.
        root: the working tree.
        rounds: of each case.
        chosen: which cases.
        slow: also those that take seconds.

    Raises:
        CaseError: a worker cannot list its cases.
        WorkerError: a worker ended.
    """

    def start(stack: ExitStack) -> tuple[WorkerProcess, WorkerProcess]:
        trees = (("base", base), ("head", root))
        before, now = (stack.enter_context(WorkerProcess(name, tree, root)) for name, tree in trees)
        return before, now

    found: dict[str, Timed] = {}
    with ExitStack() as stack:
        workers = start(stack)
        has, short = (worker.ask("plan")["short"] for worker in workers)
        for key in short:
            if not chosen(key, short[key]):
                continue
            progress(key)
            if key in has:
                found[key] = _time(workers, key, rounds, slow=slow)
            else:
                found[key] = Timed(key, "not comparable", note="base has no such case")
    suspects = [key for key, each in found.items() if each.outcome == "not confirmed"]
    if suspects:
        with ExitStack() as stack:
            workers = start(stack)
            for worker in workers:
                worker.ask("plan")
            for key in suspects:
                progress(f"{key}, once more")
                found[key] = _confirm(workers, found[key], rounds)
    return list(found.values())


def _time(
    workers: tuple[WorkerProcess, WorkerProcess], key: str, rounds: int, *, slow: bool = True
) -> Timed:
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


def _confirm(workers: tuple[WorkerProcess, WorkerProcess], timed: Timed, rounds: int) -> Timed:
    again = _time(workers, timed.key, rounds)
    if again.first is None:
        return again
    outcome = "regression" if again.first.verdict == "slower" else "not confirmed"
    return Timed(timed.key, outcome, timed.base, timed.head, timed.first, again.first)


def progress(text: str) -> None:
    """Write over one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)
