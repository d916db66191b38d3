"""The file in which a stage writes what it finds, a line at a time, so that a crash loses one row.

{"begin": "mnist trunk, bf16", "limit": 60}
{"row": {"name": "mnist trunk, bf16", "state": "ok", "seconds": 1.2, "numbers": {...}}}
{"fact": {"roofline": {...}}}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import SEEK_END, BufferedRandom
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "failed", "no memory", "crashed", "hung", "not reached"]
STATES: tuple[State, ...] = ("ok", "failed", "no memory", "crashed", "hung", "not reached")


@dataclass(frozen=True)
class Line:
    """What became of one item of a stage.

    Attributes:
        name: the item's.
        state: "ok"; "failed", by its own check or by an error; "no memory", it does not fit;
            "crashed" or "hung", its process was lost; "not reached", the stage's time was up.
        seconds: it took.
        numbers: what it found, as JSON can hold it.
        error: the last line of what went wrong.
    """

    name: str
    state: State
    seconds: float = 0.0
    numbers: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class Found:
    """All that a stage has written.

    Attributes:
        lines: one of each item.
        facts: about the stage as a whole.
        open: the item that was begun and not ended, or "".
        since: the number of bytes at which it was begun.
        limit: seconds that it may take.
        garbage: lines that were none of a stage's.
    """

    lines: list[Line] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    open: str = ""
    since: int = 0
    limit: float = 0.0
    garbage: int = 0

    @property
    def known(self) -> set[str]:
        """Names of the items that need not be run."""
        return {line.name for line in self.lines}


def read(file: Path) -> Found:
    """What a stage has written so far; what cannot be read is counted and left."""
    found = Found()
    try:
        content = file.read_bytes()
    except OSError:
        return found
    at = 0
    for raw in content.splitlines(keepends=True):
        at += len(raw)
        try:
            _take(found, json.loads(raw), at)
        except (ValueError, TypeError, KeyError, AttributeError):
            found.garbage += 1
    return found


def _take(found: Found, line: Any, at: int) -> None:  # noqa: ANN401
    if "begin" in line:
        found.open, found.limit, found.since = str(line["begin"]), float(line["limit"]), at
    elif "row" in line:
        row = Line(**line["row"])
        if row.state not in STATES:
            raise ValueError(row.state)
        found.lines.append(row)
        if row.name == found.open:
            found.open = ""
    else:
        found.facts |= dict(line["fact"])


class Writer:
    """Appends to the file; each line is there when the call returns."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def begin(self, name: str, limit: float) -> None:
        """An item is begun, that may take so many seconds."""
        self._write({"begin": name, "limit": limit})

    def row(self, line: Line) -> None:
        """An item has ended."""
        self._write({"row": asdict(line)})

    def fact(self, **facts: object) -> None:
        """Something about the stage as a whole."""
        self._write({"fact": facts})

    def _write(self, line: object) -> None:
        text = json.dumps(line, default=str) + "\n"
        with self._file.open("ab+") as file:
            if file.tell() and not _ends_a_line(file):
                text = "\n" + text  # whoever wrote before was killed in the middle of a line
            file.write(text.encode())


def _ends_a_line(file: BufferedRandom) -> bool:
    file.seek(-1, SEEK_END)
    return file.read(1) == b"\n"
