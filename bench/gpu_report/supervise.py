"""Running a stage: a process group with a time limit, started again behind what killed it."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_report import lines
from bench.gpu_report.lines import Line, Writer

STARTS = 12
"""How often a stage is started at the most; each time but the first an item has killed it."""
LOST_DEVICE = 75
"""Exit code of a stage whose CUDA context is lost: the item is told, the rest needs a new one."""
_LOOKS = 0.1  # seconds between two looks
_ERROR = re.compile(r"[\w.]*(Error|Exception|Exit)\b|.*\b([Ee]rror:|Fatal )")
_TAIL = 1 << 16  # bytes of its output that are looked at for an error


@dataclass(frozen=True)
class Ended:
    """How a stage ended.

    Attributes:
        state: "ok", it came to its end; "out of time"; or "crashed", it could not go on.
        seconds: in all.
        starts: how often it was started.
        error: the last line that it printed, if it crashed.
    """

    state: str
    seconds: float
    starts: int
    error: str = ""


def supervise(
    command: Callable[[float], Sequence[str]],
    file: Path,
    log: Path,
    seconds: float,
    environment: dict[str, str],
    folder: Path,
) -> Ended:
    """Run a stage until it has ended, its time is up, or it dies without a row to blame.

    Args:
        command: that starts it, for the seconds that it has; it runs what its file does not tell.
        file: in which it writes its rows.
        log: takes what it prints.
        seconds: for all its starts.
        environment: of its process.
        folder: where it runs.
    """
    begun = time.monotonic()
    starts = 0
    while True:
        starts += 1
        left = begun + seconds - time.monotonic()
        before = len(lines.read(file).lines)
        why, error = _once(command(left), file, log, begun + seconds, environment, folder)
        found = lines.read(file)
        if found.open:
            Writer(file).row(_lost(found.open, why, error, found.limit))
        spent = time.monotonic() - begun
        if why == "ended":
            return Ended("ok", spent, starts)
        if why == "time":
            return Ended("out of time", spent, starts)
        moved_on = len(lines.read(file).lines) > before
        if not moved_on or starts >= STARTS:
            return Ended("crashed", spent, starts, error)


def _lost(name: str, why: str, error: str, limit: float) -> Line:
    """The row of an item in whose middle the process ended."""
    if why == "time":  # nothing is wrong with it, as far as is known
        return Line(name, "not reached", 0.0, {}, "stopped in its middle: the stage's time was up")
    if why == "item":
        return Line(name, "hung", limit, {}, f"stopped after {limit:.0f} s")
    return Line(name, "crashed", 0.0, {}, error or "its process ended")


def _once(
    command: Sequence[str],
    file: Path,
    log: Path,
    deadline: float,
    environment: dict[str, str],
    folder: Path,
) -> tuple[str, str]:
    """Start it once.

    Returns:
        Why it ended: "ended", "crashed", "item" (one took too long) or "time"; and its last line.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            process_group=0,
        )
        try:
            why = _watch(process, file, deadline)
        finally:
            _kill(process)
    if why == "crashed":
        return why, last_line(log) or f"exit code {process.returncode}"
    return why, ""


def _watch(process: subprocess.Popen[bytes], file: Path, deadline: float) -> str:
    item, since, size = 0, time.monotonic(), -1
    limit = 0.0
    while process.poll() is None:
        now = time.monotonic()
        if now > deadline:
            return "time"
        with suppress(OSError):
            if file.stat().st_size != size:
                size = file.stat().st_size
                found = lines.read(file)
                limit = found.limit if found.open else 0.0
                if found.since != item:
                    item, since = found.since, now
        if limit and now - since > limit:
            return "item"
        time.sleep(_LOOKS)
    return "ended" if process.returncode == 0 else "crashed"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path) -> str:
    """The last line of what was printed that tells of an error, or says anything."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            told = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [each.strip()[:300] for each in reversed(told) if each.strip()]
    # Epilogue what killed it a crash may print stacks, and names of modules.
    return next((each for each in said if _ERROR.match(each)), said[0] if said else "")
