"""What a measurement found, and the file of a machine's rows in bench/results/."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.timing.interleaved import Spread
from bench.timing.roofline import Roofline
from fastinfogan.atomic_io import sync
from fastinfogan.engine.config import hardware, versions
from fastinfogan.errors import InputError

RESULTS = Path(__file__).parents[1] / "results"
_KEPT_VERSIONS = ("torch", "triton")  # in a file's name: those that decide speed


@dataclass(frozen=True)
class Row:
    """One case, ours and its peers, interleaved.

    Attributes:
        group: "ops", "blocks", "iteration", "data" or "startup".
        name: within the group.
        rounds: timed of each side.
        seconds: of each side, "fastinfogan" and the peers, quartiles.
        ratios: of our time to each peer's, round by round, quartiles.
        experiment: whose shapes, or None.
        precision: "bf16", ..., or None where nothing is multiplied.
        batch: images in a step, or None.
        flops: of the products of one run.
        bytes: the fewest that one run reads and writes.
        share: the floor, what the roofline allow for these FLOPs and bytes, over our median.
        joules: of one run of each side, where the GPU counts them.
        how: of the timing: "repeat 8", "graph, cold", ...
        more: what else the case tells.
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
        """Of the row in its file."""
        return f"{self.group}/{self.name}"

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Row":
        """What `asdict` gave."""
        spreads = {
            name: {side: Spread(**each) for side, each in fields[name].items()}
            for name in ("seconds", "ratios")
        }
        return cls(**{**fields, **spreads})


def machine_key(device: torch.device) -> str:
    """Hardware and versions, as a file's name: rows of one file may be set side by side."""
    found, packages = hardware(), versions()
    what = found["gpu"].split(", ")[0] if device.type == "cuda" else found["cpu"]
    parts = [what, *([] if device.type == "cuda" else [f"{found['threads']} threads"])]
    parts += [f"{name} {packages[name]}" for name in _KEPT_VERSIONS]
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-")


def write(
    rows: Iterable[Row], roofline: Roofline, folder: Path = RESULTS, key: str | None = None
) -> Path:
    """Add rows to their machine's file; rows of the same names are replaced.

    Args:
        rows: what was measured.
        roofline: in the same run.
        folder: of the files.
        key: of the machine; None for this one.

    Returns:
        The file.
    """
    file = folder / f"{key or machine_key(roofline.device)}.json"
    kept = {row.key: row for row in read(file)} if file.exists() else {}
    kept |= {row.key: row for row in rows}
    found = {
        "hardware": hardware(),
        "versions": versions(),
        "roofline": roofline.to_dict(),
        "rows": [asdict(kept[name]) for name in sorted(kept)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    sync(new)
    new.replace(file)
    return file


def read(file: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        InputError: not such a file.
    """
    try:
        return [Row.from_dict(fields) for fields in json.loads(file.read_text())["rows"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: not a file of benchmark rows: {error}") from error
