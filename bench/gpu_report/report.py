"""The report: what each stage found, as JSON, as a Markdown page, and as a table for stdout."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_report.journal import NO_FAILURE, Item, Journal
from bench.gpu_report.stages import PICTURE, Stage
from bench.gpu_report.supervise import Ended
from bench.numbers import table as markdown_table
from fastinfogan.errors import InputError
from fastinfogan.files import write_json, write_text

NAME, PAGE = "report.json", "report.md"
_WIDE = 118
_CELL = 160
"""Characters of a cell of the page."""
_ROWS = 400
"""Rows of a table of the page."""
_HIDDEN = ("entry", "key", "refused", "curve", "missing")
"""Numbers and facts that only report.json has."""
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
        garbage: lines of its journal that cannot be parsed.
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
        """Read the result of a stage whose processes have run."""
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

    @property
    def right(self) -> str:
        """Number of items that are right, of all."""
        return f"{sum(item.state == 'ok' for item in self.items)}/{len(self.items)}"

    def headline(self, shown: Sequence[str]) -> str:
        """Join the numbers of the items that have any of these names, in a line."""
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

    @classmethod
    def read(cls, file: Path) -> "GpuReport":
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
            return cls(found["arguments"], stages, found["started"], found["seconds"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file}: not a GPU report: {error}") from error

    def write(self, folder: Path) -> None:
        """Write report.json, whole or not at all."""
        write_json(folder / NAME, asdict(self))

    def write_page(self, folder: Path) -> None:
        write_text(folder / PAGE, "\n\n".join(self._page(folder)) + "\n")

    def stage(self, name: str) -> StageResult:
        """Return one of the stages; an empty one if it was not part of this run."""
        return next((s for s in self.stages if s.name == name), StageResult(name, name))

    def table(self, stages: Sequence[Stage]) -> Iterable[str]:
        """Return the last lines on stdout: stage, state, seconds, findings; then what failed."""
        yield f"{'stage':12s} {'state':12s} {'seconds':>8s}  items  found"
        shown = {stage.name: stage.shown for stage in stages}
        for s in self.stages:
            items, found = s.right if s.items else "-", s.headline(shown.get(s.name, ()))
            yield _cut(f"{s.name:12s} {s.state:12s} {s.seconds:8.1f} {items:>7s} {found}")
        failures = [(s.name, item) for s in self.stages for item in s.failures]
        if failures:
            yield f"\nfailed: {len(failures)} items"
        yield from (_cut(f"  {s.name}: {s.state}: {s.error}") for s in self.stages if s.error)
        for name, item in failures[:_FAILURES]:
            yield _cut(f"  {name}: {item.name}: {item.state}: {item.error}")
        if len(failures) > _FAILURES:
            yield f"  and {len(failures) - _FAILURES} more, in {NAME}"

    def _page(self, folder: Path) -> Iterator[str]:
        dry = " (dry run, on a CPU: times mean nothing)" if self.arguments.get("dry_run") else ""
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.started))
        yield f"# fastinfogan on a GPU{dry}\n\n{when}, {self.seconds:.0f} s"
        missing = self.stage("environment").facts.get("missing") or {}
        yield from (f"Not installed here: {name}, for {what}." for name, what in missing.items())
        yield _rows(
            {"stage": s.name, "state": s.state, "seconds": s.seconds, "of": s.limit,
             "right": s.right, "error": s.error}
            for s in self.stages
        )  # fmt: skip
        for stage in self.stages:
            yield f"## {stage.title}"
            yield from _section(stage)
            if stage.name == "mnist" and (folder / PICTURE).exists():
                yield f"![Generated images]({PICTURE})"


def _section(stage: StageResult) -> Iterator[str]:
    words = f"{stage.state}, {stage.seconds:.1f} of {stage.limit:.0f} s"
    words += f", {stage.starts} starts" if stage.starts > 1 else ""
    words += f", {stage.garbage} lines could not be parsed" if stage.garbage else ""
    yield words + (f": {stage.error}" if stage.error else "")
    for heading, items in (("Failed:", stage.failures), ("All:", stage.items)):
        if items:
            yield heading
            yield _rows(
                {"name": i.name, "state": i.state, "seconds": round(i.seconds, 2),
                 **_visible(i.numbers), **({"error": i.error} if i.error else {})}
                for i in items
            )  # fmt: skip
    for name, fact in _visible(stage.facts).items():
        rows = isinstance(fact, list) and fact and isinstance(fact[0], Mapping)
        yield f"{name}:\n\n{_rows(fact)}" if rows else f"{name}: {_cell(fact)}"


def _visible(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if name not in _HIDDEN}


def _rows(found: Iterable[Mapping[str, Any]]) -> str:
    rows = list(found)[:_ROWS]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table(columns, [[_cell(row.get(c, "")) for c in columns] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(_cell, value))
    text = " ".join(str(value).split()).replace("|", "\\|").replace("<", "\\<")
    return _cut(text, _CELL)


def _cut(text: str, wide: int = _WIDE) -> str:
    return text if len(text) <= wide else text[: wide - 3] + "..."
