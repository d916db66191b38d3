"""Rows of results: a machine's file of them in bench/results/, and their text table."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.timing.interleaved import Spread
from bench.timing.roofline import Roofline
from fastinfogan.engine.config import hardware, versions
from fastinfogan.errors import InputError
from fastinfogan.files import write_json

FASTINFOGAN = "fastinfogan"
RESULTS = Path(__file__).parents[1] / "results"
_VERSIONS = ("torch", "triton")  # in a file's name: those that decide speed


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        group: "ops", "blocks", "iteration", "data" or "startup".
        name: within the group.
        rounds: of timing.
        seconds: quartiles by implementation, "fastinfogan" and the baselines.
        ratios: quartiles of fastinfogan's time over each baseline's, round by round.
        experiment: whose shapes, or None.
        precision: "bf16", ..., or None where nothing is multiplied.
        batch: images in a step, or None.
        flops: of the products of one run.
        bytes: the fewest that one run reads and writes.
        share: of the roofline, the least time for these FLOPs and bytes over the median.
        how: of the timing: "repeat 8", "graph, cold", ...
        more: what else the case holds.
    """

    group: str
    name: str
    rounds: int
    seconds: Mapping[str, Spread]
    ratios: Mapping[str, Spread]
    experiment: str | None = None
    precision: str | None = None
    batch: int | None = None
    flops: int = 0
    bytes: int = 0
    share: float | None = None
    how: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}"

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Row":
        """Convert from what `asdict` gives."""
        spreads = {
            name: {key: Spread(**each) for key, each in fields[name].items()}
            for name in ("seconds", "ratios")
        }
        return cls(**{**fields, **spreads})


def machine_key(device: torch.device) -> str:
    """Return hardware and versions as a file's name: rows of one file are comparable."""
    found, packages = hardware(), versions()
    if device.type == "cuda":
        parts = [found["gpu"].split(", ")[0]]
    else:
        parts = [found["cpu"], f"{found['threads']} threads"]
    parts += [f"{name} {packages[name]}" for name in _VERSIONS]
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-")


def write(
    rows: Iterable[Row], roofline: Roofline, folder: Path = RESULTS, key: str | None = None
) -> Path:
    """Add rows to their machine's file; rows of the same names are replaced.

    Args:
        rows: what was measured.
        roofline: measured in the same run.
        folder: of the files.
        key: of the machine; None for this one.

    Returns:
        The file.
    """
    file = folder / f"{key or machine_key(roofline.device)}.json"
    stored = {row.key: row for row in read(file)} if file.exists() else {}
    stored |= {row.key: row for row in rows}
    found = {
        "hardware": hardware(),
        "versions": versions(),
        "roofline": roofline.to_dict(),
        "rows": [asdict(stored[name]) for name in sorted(stored)],
    }
    write_json(file, found)
    return file


def read(file: Path) -> list[Row]:
    """Read the rows of a file.

    Raises:
        InputError: not such a file.
    """
    try:
        return [Row.from_dict(fields) for fields in json.loads(file.read_text())["rows"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: not a file of benchmark rows: {error}") from error


def heading_and_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Write the median, the ratio to each baseline's time, and the share of the roofline.

    A ratio is fastinfogan's time over the baseline's, median (quartiles); below 1 it is faster. The
    share is of the roofline; small operands stay in caches and may exceed 1.
    """
    baselines = list(dict.fromkeys(name for row in rows for name in row.ratios))
    shares = any(row.share is not None for row in rows)
    heading = [FASTINFOGAN, *(f"of {name}" for name in baselines), *["of the roofline"] * shares]
    cells = [
        [
            row.name,
            duration(row.seconds[FASTINFOGAN].median),
            *(str(row.ratios.get(name, "")) for name in baselines),
            *["" if row.share is None else f"{row.share:.2f}"] * shares,
        ]
        for row in rows
    ]
    return heading, cells


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Write each group's rows under a heading, and below what was not measured and why."""
    for group in dict.fromkeys(row.group for row in rows):
        chosen = [row for row in rows if row.group == group]
        heading, cells = heading_and_cells(chosen)
        table = [[group, *heading], *cells]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for name, *others in table:
            aligned = (cell.rjust(n) for cell, n in zip(others, widths[1:], strict=True))
            yield "  ".join([name.ljust(widths[0]), *aligned]).rstrip()
        for note in dict.fromkeys(row.more.get("left out") for row in chosen):
            if note:
                yield f"  not measured: {note}"
        for row in chosen:
            for name, aim in row.more.get("aims", {}).items():
                if name in row.ratios and row.ratios[name].median > aim:
                    yield f"  above its aim: {row.name}, {aim:g} of {name}"
        yield ""


def duration(seconds: float) -> str:
    """Write seconds as in "35.1 us", "12.3 ms", "1.25 s"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
