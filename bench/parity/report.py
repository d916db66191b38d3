"""The report: trajectories, what they say, a JSON, a picture and a table."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.parity import statistics
from bench.parity.figure import Panel, draw_parity
from bench.parity.sides import Setup, Side
from bench.parity.statistics import Judgement, Values, judge
from bench.parity.trajectories import PICTURE, REPORT, Folder, Progress
from fastinfogan.atomic_io import sync
from fastinfogan.engine.environment import versions
from fastinfogan_kernels.latents import Categorical

_EARLY: Final[tuple[tuple[Side, Side], ...]] = (("engine", "rounded"), ("engine32", "rounded32"))
_FP16_MAY_SKIP: Final = 0.01
"""Of the iterations: by an overflow the loss scale finds out that it is too large."""


@dataclass(frozen=True)
class Report:
    """What was found, and where it is written.

    Attributes:
        judgement: what was found.
        document: all of it with settings, versions and machines, as JSON has it.
        picture: the trajectories.
    """

    judgement: Judgement
    document: dict[str, Any]
    picture: Path


def compare(path: Path, setup: Setup, seeds: int, progress: Progress) -> Report:
    """Train what is not there yet, compare it, and write parity.json and parity.png.

    Args:
        path: the folder that the trajectories are kept in.
        setup: what is trained.
        seeds: from 1 to this.
        progress: told how far it is.

    Raises:
        InputError: the folder holds something else, or a file in it is damaged.
        OSError: it cannot be written.
    """
    kept = Folder(path, setup, seeds).fill(progress)
    values = {side: np.stack([each.values for each in found]) for side, found in kept.items()}
    judgement = judge(
        values["reference"],
        values["engine"],
        {
            setup.computed(rounded).name: (values[engine], values[rounded])
            for engine, rounded in _EARLY
            if rounded in values
        },
        setup.quantities,
        _FP16_MAY_SKIP if setup.precision.scaled else 0.0,
    )
    machines: list[dict[str, str]] = []
    for each in (each for found in kept.values() for each in found):
        if each.machine not in machines:
            machines.append(each.machine)
    document = {
        "verdict": judgement.verdict,
        "agree": not judgement.reasons,
        "settings": {
            "experiment": setup.experiment.name,
            "variants": setup.experiment.variants,
            "batch_size": setup.experiment.batch_size,
            "iterations": setup.iterations,
            "seeds": list(range(1, seeds + 1)),
            "precision": setup.precision.name,
            "device": setup.device.type,
            "runner": setup.fingerprint("engine")["runner"],
            "images": {"set": setup.source.name, **setup.source.fingerprint},
        },
        "versions": versions(),
        "machines": machines,
        "limits": {
            "alpha": statistics.ALPHA,
            "tolerance_times_rounding": statistics.TOLERANCE,
            "no_matter_nats": statistics.NO_MATTER,
            "margin_nats": statistics.MARGIN,
        },
        "skipped": judgement.skipped,
        "early": [asdict(d) for d in judgement.early],
        "whole": [{**asdict(d), "within_margin": d.within} for d in judgement.whole],
        "windows": [{**asdict(d), "within_margin": d.within} for d in judgement.windows],
    }
    document = _finite(document)
    picture = draw_parity(panels(setup, values), path / PICTURE)
    _write(path / REPORT, json.dumps(document, indent=1) + "\n")
    return Report(judgement, document, picture)


def panels(setup: Setup, values: dict[Side, Values]) -> list[Panel]:
    """What the picture shows: both losses, and L_I of the categorical and the continuous codes."""
    spec = setup.experiment.latents
    kinds = [isinstance(code, Categorical) for code in spec.codes]
    shown: list[tuple[str, list[int], float | None]] = [
        ("$D$'s loss", [0], None), ("$G$'s loss", [1], None)
    ]  # fmt: skip
    for kind in (True, False):
        places = [i for i, each in enumerate(kinds) if each == kind]
        if places:
            names = [spec.names[i] for i in places]
            between = " and " if len(names) == 2 else " to "
            told = names[0] if len(names) == 1 else f"{names[0]}{between}{names[-1]}, summed"
            entropy = sum(spec.codes[i].entropy for i in places) if kind else None
            shown.append((f"$L_I$ of {told}", [2 + i for i in places], entropy))
    return [
        Panel(
            title,
            {side: values[side][:, :, where].sum(axis=2) for side in ("reference", "engine")},
            entropy,
        )
        for title, where, entropy in shown
    ]


def table(found: Judgement, seeds: int) -> list[str]:
    """The report for a terminal, a line a quantity; all in nats."""
    lines = [
        f"{'nats':<8}{'reference':>10}{'engine':>9}  {'difference':<27}{'found from':>11}"
        f"{'seeds':>8}{'early':>12}  windows"
    ]
    for d in found.whole:
        early = [f"{e.ratio:.2f}" for e in found.early if e.quantity == d.quantity]
        windows = [w for w in found.windows if w.quantity == d.quantity]
        within = sum(w.within for w in windows)
        furthest = max((abs(w.difference) for w in windows), default=math.nan)
        lines.append(
            f"{d.quantity:<8}{d.reference:>10.4f}{d.engine:>9.4f}  "
            f"{f'{d.difference:+.4f} ({d.low:+.4f} to {d.high:+.4f})':<27}{d.seen_from:>11.4f}"
            f"{d.seeds_differ:>8.4f}{'  '.join(early):>12}  "
            f"up to {furthest:.3f}, {within} of {len(windows)} shown within {statistics.MARGIN:g}"
        )
    equal = [d.quantity for d in found.whole if d.within]
    rest = [d.quantity for d in found.whole if not d.within]
    shown = f"shown to be within {statistics.MARGIN:g} nats over the whole run: "
    shown += ", ".join(equal) or "none"
    if rest:
        shown += f"; not shown, by so few seeds or as it is not so: {', '.join(rest)}"
    lines += [
        "means over the whole run and all seeds; difference: engine - reference, paired by seed, "
        "with its 95 % interval;",
        "found from: the least difference that the tests must find; seeds: the reference's "
        "deviation from seed to seed;",
        "early: how far apart in the first iterations, in times of what rounding makes of the "
        f"reference itself, in {' and in '.join(dict.fromkeys(e.precision for e in found.early))}",
        f"{seeds} seeds; {shown}",
        f"verdict: {found.verdict}",
    ]
    return lines


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    sync(partial)
    os.replace(partial, file)
