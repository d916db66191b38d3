"""The report as data: what each stage found, in one JSON file, and the table that is printed."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_report import lines
from bench.gpu_report.lines import Line
from bench.gpu_report.supervise import Ended
from fastinfogan.errors import InputError

NAME = "report.json"
NOT_REACHED = "not reached"
_WIDE = 118
_FAILURES = 48
"""Lines of failures that are printed: the end of what is printed may be all that is seen."""


@dataclass
class StageResult:
    """What became of a stage.

    Attributes:
        name: its.
        title: for people.
        state: "ok"; "failed", if a row of it did; "out of time"; "crashed"; "stopped", with the
            whole; "not reached"; "skipped".
        seconds: it took.
        limit: it was given.
        starts: of its process.
        lines: its rows.
        facts: about it as a whole.
        error: what ended it.
        garbage: lines of its file that made no sense.
    """

    name: str
    title: str
    state: str = NOT_REACHED
    seconds: float = 0.0
    limit: float = 0.0
    starts: int = 0
    lines: list[Line] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    garbage: int = 0

    @classmethod
    def of(cls, name: str, title: str, limit: float, ended: Ended, file: Path) -> "StageResult":
        """Of a stage that was run."""
        found = lines.read(file)
        bad = [line for line in found.lines if line.state not in ("ok", NOT_REACHED)]
        state = ended.state
        if state != "crashed" and (bad or (state == "ok" and not found.lines)):
            state = "failed"
        error = ended.error or (
            "" if found.lines or state in ("out of time", "stopped") else "it told nothing"
        )
        return cls(
            name, title, state, round(ended.seconds, 1), round(limit, 1), ended.starts,
            found.lines, found.facts, error, found.garbage,
        )  # fmt: skip

    @property
    def failures(self) -> list[Line]:
        """Rows that are neither right nor merely not reached."""
        return [line for line in self.lines if line.state not in ("ok", NOT_REACHED)]

    def numbers(self, name: str) -> Mapping[str, Any]:
        """Of one row, or none."""
        return next((line.numbers for line in self.lines if line.name == name), {})


@dataclass
class Report:
    """All stages of one run of the command.

    Attributes:
        arguments: it was started with.
        stages: in their order.
        started: when, as seconds since 1970.
        seconds: it took, so far.
    """

    arguments: dict[str, Any]
    stages: list[StageResult]
    started: float = field(default_factory=time.time)
    seconds: float = 0.0

    def write(self, folder: Path) -> Path:
        """Write report.json, whole or not at all."""
        file = folder / NAME
        new = file.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1) + "\n")
        new.replace(file)
        return file

    def stage(self, name: str) -> StageResult:
        """One of them; an empty one if it was not part of this run."""
        return next((s for s in self.stages if s.name == name), StageResult(name, name))


def read(file: Path) -> Report:
    """A report that was written before.

    Raises:
        InputError: not such a file.
    """
    try:
        found = json.loads(file.read_text())
        stages = [
            StageResult(**{**each, "lines": [Line(**line) for line in each["lines"]]})
            for each in found["stages"]
        ]
        return Report(found["arguments"], stages, found["started"], found["seconds"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: not a GPU report: {error}") from error


def table(report: Report) -> Iterable[str]:
    """The last lines on stdout: stage, state, seconds, what it found; then what failed."""
    yield f"{'stage':12s} {'state':12s} {'seconds':>8s}  rows  found"
    for s in report.stages:
        good = sum(line.state == "ok" for line in s.lines)
        rows = f"{good}/{len(s.lines)}" if s.lines else "-"
        yield _cut(f"{s.name:12s} {s.state:12s} {s.seconds:8.1f} {rows:>6s} {headline(s)}")
    failures = [(s.name, line) for s in report.stages for line in s.failures]
    stopped = [s for s in report.stages if s.error]
    if failures or stopped:
        yield ""
        yield f"failed: {len(failures)} rows"
    for s in stopped:
        yield _cut(f"  {s.name}: {s.state}: {s.error}")
    for name, line in failures[:_FAILURES]:
        yield _cut(f"  {name}: {line.name}: {line.state}: {line.error}")
    if len(failures) > _FAILURES:
        yield f"  and {len(failures) - _FAILURES} more, in {NAME}"


def headline(s: StageResult) -> str:
    """The numbers of a stage that are worth a line."""
    if not s.lines:
        return ""
    told = [line.numbers for line in s.lines if line.state == "ok"]
    by_name = {line.name: line.numbers for line in s.lines}
    match s.name:
        case "environment":
            gpu, packages = by_name.get("the GPU", {}), by_name.get("packages", {})
            where = gpu.get("name") or by_name.get("hardware", {}).get("cpu", "")
            return f"{where}; missing: {packages.get('missing', '?')}"
        case "compile":
            return _pairs(by_name.get("kernels compiled", {}), "kernels", "seconds", "with stack")
        case "correctness":
            most = max((n.get("of what is allowed", 0.0) for n in told), default=0.0)
            return f"{len(told)} right; nearest to its limit {most:.2f}"
        case "capture":
            return f"{sum('tensors' in n for n in told)} comparisons bit for bit"
        case "iteration":
            shown = [n for n in told if "us, fastinfogan" in n]
            return "; ".join(_iteration(n) for n in shown[:5])
        case "mnist":
            one = by_name.get("seed 1", {})
            return _pairs(one, "iterations", "seconds", "us an iteration", "L_I of c1",
                          "error of c1")  # fmt: skip
        case "tuning":
            better = [n["of the rule"] for n in told if n.get("entry")]
            return f"{len(better)} of {len(told)} passes better, to {min(better, default=1):.2f}"
        case "tuned":
            return "; ".join(
                f"{n['experiment']} {n['of the rule']}" for n in told if "of the rule" in n
            )
        case "blocks":
            ratios = [v for n in told for k, v in n.items() if k == "of eager"]
            middle = sorted(ratios)[len(ratios) // 2] if ratios else float("nan")
            return f"{len(told)} cases; of eager, median {middle:.2f}"
        case "scaling":
            best = max(told, key=lambda n: n.get("images/s", 0), default={})
            return _pairs(best, "experiment", "batch", "images/s")
        case "memory":
            return "; ".join(
                f"{n['experiment']} {n['MiB allocated']} MiB"
                for n in told
                if n.get("side") == "captured" and "MiB allocated" in n
            )
        case "profile":
            return _pairs(by_name.get("mnist, as trained", {}), "launches", "us busy",
                          "us from first to last")  # fmt: skip
    return ""


def _iteration(n: Mapping[str, Any]) -> str:
    peers = [f"{n[k]} {k}" for k in ("of eager", "of best", "of compiled") if k in n]
    return f"{n['experiment']} {n['us, fastinfogan']:.0f} us, {', '.join(peers)}"


def _pairs(numbers: Mapping[str, Any], *names: str) -> str:
    return ", ".join(f"{name} {numbers[name]}" for name in names if name in numbers)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDE else text[: _WIDE - 3] + "..."
