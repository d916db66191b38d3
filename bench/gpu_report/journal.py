"""The journal in which a stage writes what it finds, a line at a time: a crash loses one item.

{"begin": "mnist, batch 128, bf16", "limit": 60}
{"item": {"name": "mnist, batch 128, bf16", "state": "ok", "seconds": 1.2, "numbers": {...}}}
{"fact": {"roofline": {...}}}
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

State = Literal["ok", "failed", "no memory", "crashed", "hung", "not reached"]
NO_FAILURE = ("ok", "not reached")


@dataclass(frozen=True)
class Item:
    """What became of one item of a stage.

    Attributes:
        name: unique in the stage.
        state: "ok"; "failed", by its own check or by an error; "no memory", it does not fit;
            "crashed" or "hung", its process was lost; "not reached", `error` says why.
        seconds: it took.
        numbers: what it found, as JSON can hold it.
        error: the first line of what went wrong.
    """

    name: str
    state: State
    seconds: float = 0.0
    numbers: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class Entries:
    """All that a journal holds.

    Attributes:
        items: those that ended.
        facts: about the stage as a whole.
        open: the item that was begun and has not ended, or "".
        begun: the number of bytes at which it was begun.
        limit: seconds that it may take.
        garbage: lines that cannot be parsed.
    """

    items: list[Item] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    open: str = ""
    begun: int = 0
    limit: float = 0.0
    garbage: int = 0

    def take(self, line: Any, at: int) -> None:
        """Add a line that ends at byte `at`."""
        if "begin" in line:
            self.open, self.limit, self.begun = str(line["begin"]), float(line["limit"]), at
        elif "item" in line:
            item = Item(**line["item"])
            if item.state not in get_args(State):
                raise ValueError(item.state)
            self.items.append(item)
            self.open = "" if item.name == self.open else self.open
        else:
            self.facts |= dict(line["fact"])


class Journal:
    """A stage's file; each line is on disk when the call returns."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> Entries:
        """Read what was written so far; lines that cannot be parsed are counted."""
        found, at = Entries(), 0
        content = self.file.read_bytes() if self.file.exists() else b""
        for raw in content.splitlines(keepends=True):
            at += len(raw)
            try:
                found.take(json.loads(raw), at)
            except (ValueError, TypeError, KeyError, AttributeError):
                found.garbage += 1
        return found

    def begin(self, name: str, limit: float) -> None:
        """Begin an item that may take `limit` seconds."""
        self._write({"begin": name, "limit": limit})

    def add(self, item: Item) -> None:
        self._write({"item": asdict(item)})

    def fact(self, **facts: Any) -> None:
        """Add something about the stage as a whole."""
        self._write({"fact": facts})

    def _write(self, line: object) -> None:
        with self.file.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a process was killed in the middle of a line
                    file.write(b"\n")
            file.write(json.dumps(as_json(line)).encode() + b"\n")


def as_json(value: Any) -> Any:
    """Convert a value to what JSON can hold; a number that is not finite becomes a word."""
    if isinstance(value, Mapping):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if hasattr(value, "tolist"):  # a tensor
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def first_line(error: BaseException | str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
