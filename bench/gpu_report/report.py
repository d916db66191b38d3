"""The report as data: what each stage found, in one JSON file, and the table that is printed."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_report.journal import NO_FAILURE, Item, Journal
from bench.gpu_report.stages import Stage
from bench.gpu_report.supervise import Ended
from fastinfogan.errors import InputError
from fastinfogan.files import write_json

NAME = "report.json"
_WIDE = 118
_FAILURES = 48
"""Failures that are printed: the end of what is printed may be all that is seen."""


@dataclass
class StageResult:
    """What became of a stage.

    Attributes:
        name: its.
        title: for people.
        state: "ok"; "failed", if an item of it did; "out of time"; "crashed"; "stopped", with the
            whole; "not reached"; "skipped".
        seconds: it took.
        limit: it was given.
        starts: of its processes.
        items: what it found.
        facts: about it as a whole.
        error: what ended it.
        garbage: lines of its journal that made no sense.
    """

    name: str
    title: str
    state: str = "not reached"
    seconds: float = 0.0
    limit: float = 0.0
    starts: int = 0
    items: list[Item] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    garbage: int = 0

    @classmethod
    def of(
        cls, stage: Stage, limit: float, ended: Sequence[Ended], journals: Sequence[Journal]
    ) -> "StageResult":
        """Of a stage whose processes have run."""
        found = [journal.read() for journal in journals]
        items = [item for each in found for item in each.items]
        facts = {name: fact for each in found for name, fact in each.facts.items()}
        worst = max(ended, key=lambda each: ("ok", "out of time", "crashed", "stopped").index(
            each.state))  # fmt: skip
        state, error = worst.state, worst.error
        if state in ("ok", "out of time") and any(i.state not in NO_FAILURE for i in items):
            state = "failed"
        elif state == "ok" and not items:
            state, error = "failed", "it wrote nothing"
        return cls(
            stage.name, stage.title, state, round(max(each.seconds for each in ended), 1),
            round(limit, 1), sum(each.starts for each in ended), items, facts, error,
            sum(each.garbage for each in found),
        )  # fmt: skip

    @property
    def failures(self) -> list[Item]:
        """Items that are neither right nor merely not reached."""
        return [item for item in self.items if item.state not in NO_FAILURE]

    def numbers(self, name: str) -> Mapping[str, Any]:
        """Of one item, or none."""
        return next((item.numbers for item in self.items if item.name == name), {})

    def headline(self, shown: Sequence[str]) -> str:
        """The numbers of the items that have any of these names, in a line."""
        rows = [item.numbers for item in self.items if item.state == "ok"]
        lines = [", ".join(f"{k} {n[k]}" for k in shown if k in n) for n in rows]
        return "; ".join(line for line in lines if line)


@dataclass
class GpuReport:
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

    def write(self, folder: Path) -> None:
        """Write report.json, whole or not at all."""
        write_json(folder / NAME, asdict(self))

    def stage(self, name: str) -> StageResult:
        """One of them; an empty one if it was not part of this run."""
        return next((s for s in self.stages if s.name == name), StageResult(name, name))


def read(file: Path) -> GpuReport:
    """Read a report that was written before.

    Raises:
        InputError: not such a file.
    """
    try:
        found = json.loads(file.read_text())
        stages = [
            StageResult(**{**each, "items": [Item(**item) for item in each["items"]]})
            for each in found["stages"]
        ]
        return GpuReport(found["arguments"], stages, found["started"], found["seconds"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: not a GPU report: {error}") from error


def table(report: GpuReport, stages: Sequence[Stage]) -> Iterable[str]:
    """The last lines on stdout: stage, state, seconds, what it found; then what failed."""
    yield f"{'stage':12s} {'state':12s} {'seconds':>8s}  items  found"
    shown = {stage.name: stage.shown for stage in stages}
    for s in report.stages:
        good = sum(item.state == "ok" for item in s.items)
        items = f"{good}/{len(s.items)}" if s.items else "-"
        found = s.headline(shown.get(s.name, ()))
        yield _cut(f"{s.name:12s} {s.state:12s} {s.seconds:8.1f} {items:>7s} {found}")
    failures = [(s.name, item) for s in report.stages for item in s.failures]
    if failures:
        yield f"\nfailed: {len(failures)} items"
    yield from (_cut(f"  {s.name}: {s.state}: {s.error}") for s in report.stages if s.error)
    for name, item in failures[:_FAILURES]:
        yield _cut(f"  {name}: {item.name}: {item.state}: {item.error}")
    if len(failures) > _FAILURES:
        yield f"  and {len(failures) - _FAILURES} more, in {NAME}"


def _cut(text: str) -> str:
    return text if len(text) <= _WIDE else text[: _WIDE - 3] + "..."
