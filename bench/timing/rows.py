"""Rows of results, and a machine's file of them in bench/results/."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.timing.interleaved import Spread
from bench.timing.roofline import Roofline
from fastinfogan.atomic_io import write_json
from fastinfogan.engine.config import hardware, versions
from fastinfogan.errors import InputError

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
        joules: of one run by implementation, where the GPU counts them.
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
    joules: Mapping[str, float] | None = None
    how: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The row's key in its file."""
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
    what = found["gpu"].split(", ")[0] if device.type == "cuda" else found["cpu"]
    parts = [what, *([] if device.type == "cuda" else [f"{found['threads']} threads"])]
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
