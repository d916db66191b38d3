"""Run a stage: a process group with a time limit, started again behind an item that killed it."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Literal

from bench.gpu_report.journal import Item, Journal

STARTS = 12
"""Starts of a stage at the most; each but the first follows an item that killed the process."""
LOST_DEVICE = 75
"""Exit code of a stage whose CUDA context is lost: its item is written, the rest starts anew."""
JOURNAL, PART = "GPU_REPORT_JOURNAL", "GPU_REPORT_PART"
"""Environment variables of the test suite, see `pytest_plugin`."""
_POLL = 0.1
_ERROR = re.compile(r"[\w.]*(Error|Exception|Exit)\b|.*\b([Ee]rror:|Fatal )")
_TAIL = 1 << 16  # bytes of a log that are searched for an error

Ending = Literal["ended", "crashed", "item", "time"]


@dataclass(frozen=True)
class Ended:
    """How a stage ended.

    Attributes:
        state: "ok", it completed; "out of time"; "crashed", it could not continue; "stopped",
            with the whole report.
        seconds: in all.
        starts: of its process.
        error: the line of its log that names an error, if it crashed.
    """

    state: str
    seconds: float
    starts: int
    error: str = ""


@dataclass(frozen=True)
class Supervisor:
    """One process of a stage: ends, is out of time, or dies with no item to blame.

    Attributes:
        command: starts it, given its seconds; it runs the items that its journal lacks.
        journal: that it writes.
        log: takes what it prints.
        environment: of the process.
        folder: where it runs.
        stopping: set by another thread to have it stop.
    """

    command: Callable[[float], Sequence[str]]
    journal: Journal
    log: Path
    environment: Mapping[str, str]
    folder: Path
    stopping: Event = field(default_factory=Event)

    def run(self, seconds: float) -> Ended:
        """Run it for so many seconds at the most, over all its starts."""
        begun, starts = time.monotonic(), 0
        while True:
            starts += 1
            before = len(self.journal.read().items)
            ending, error = self._once(begun + seconds)
            found = self.journal.read()
            if found.open:
                self.journal.add(_lost(found.open, ending, error, found.limit))
            spent = time.monotonic() - begun
            if ending in ("ended", "time"):
                return Ended("ok" if ending == "ended" else "out of time", spent, starts)
            if len(self.journal.read().items) == before or starts >= STARTS:
                return Ended("crashed", spent, starts, error)

    def _once(self, deadline: float) -> tuple[Ending, str]:
        """Start it once; why it ended, and its error if it crashed."""
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                self.command(deadline - time.monotonic()),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                cwd=self.folder, env=self.environment, process_group=0,
            )  # fmt: skip
            try:
                ending = self._watch(process, deadline)
            finally:  # with all that it started
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if ending != "crashed":
            return ending, ""
        return ending, last_error(self.log) or f"exit code {process.returncode}"

    def _watch(self, process: subprocess.Popen[bytes], deadline: float) -> Ending:
        begun, since, size, limit = 0, time.monotonic(), -1, 0.0
        while process.poll() is None:
            now = time.monotonic()
            if now > deadline or self.stopping.is_set():
                return "time"
            with suppress(OSError):
                if self.journal.file.stat().st_size != size:
                    size = self.journal.file.stat().st_size
                    found = self.journal.read()
                    limit = found.limit if found.open else 0.0
                    begun, since = found.begun, since if found.begun == begun else now
            if limit and now - since > limit:
                return "item"
            time.sleep(_POLL)
        return "ended" if process.returncode == 0 else "crashed"


def _lost(name: str, ending: Ending, error: str, limit: float) -> Item:
    """Return the item in whose middle the process ended."""
    if ending == "time":  # nothing is wrong with it, as far as is known
        return Item(name, "not reached", error="stopped in its middle: the stage's time was up")
    if ending == "item":
        return Item(name, "hung", limit, error=f"stopped after {limit:.0f} s")
    return Item(name, "crashed", error=error or "its process ended")


def last_error(log: Path) -> str:
    """Return the last line of a log that names an error, or the last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip()[:300] for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in reversed(lines) if line]
    # Behind the error a crash may print stacks, and names of modules.
    return next((line for line in lines if _ERROR.match(line)), lines[0] if lines else "")
