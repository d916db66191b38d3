"""The report: what the trajectories show, as JSON, a picture and a table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench.parity import statistics
from bench.parity.configs import Config, Setup
from bench.parity.figure import Panel, draw_parity
from bench.parity.statistics import Analysis, Values, analyse
from bench.parity.trajectories import PICTURE, REPORT, Folder, Progress, read_saved
from fastinfogan import experiments
from fastinfogan.engine.config import versions
from fastinfogan.errors import InputError
from fastinfogan.files import write_json
from fastinfogan_kernels.latents import Categorical, LatentSpec

_EARLY: Final[tuple[tuple[Config, Config], ...]] = (
    ("engine", "rounded"), ("engine32", "rounded32"),
)  # fmt: skip
_FP16_MAY_SKIP: Final = 0.01
"""Of the iterations: by an overflow the loss scale finds out that it is too large."""


def compare(
    path: Path, setup: Setup, seeds: int, progress: Progress
) -> tuple[Analysis, dict[str, Any]]:
    """Train the missing trajectories, analyse all, and write parity.json and parity.png.

    Args:
        path: the folder of the trajectories.
        setup: what is trained.
        seeds: from 1 to this.
        progress: called with what is done.

    Returns:
        The analysis, and the document that was written.

    Raises:
        InputError: the folder holds something else, or a file in it is damaged.
        OSError: it cannot be written.
    """
    values, machines = Folder(path, setup, seeds).fill(progress)
    e = setup.experiment
    settings = {
        "experiment": e.name,
        "variants": e.variants,
        "batch_size": e.batch_size,
        "iterations": setup.iterations,
        "seeds": list(range(1, seeds + 1)),
        "precision": setup.precision.name,
        "device": setup.device.type,
        "execution": setup.fingerprint("engine")["execution"],
        "images": {"set": setup.source.name, **setup.source.fingerprint},
    }
    made = {"settings": settings, "versions": versions(), "machines": machines}
    return _write(path, values, made, e.latents)


def reanalyse(path: Path) -> tuple[Analysis, dict[str, Any]]:
    """Analyse a finished report's trajectories anew; train nothing.

    Args:
        path: the report's folder.

    Raises:
        InputError: it holds no report.
    """
    try:
        before = json.loads((path / REPORT).read_text())
        made = {name: before[name] for name in ("settings", "versions", "machines")}
        latents = experiments.get(made["settings"]["experiment"]).latents
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: no report: {error}") from error
    return _write(path, read_saved(path), made, latents)


def _write(
    path: Path, values: dict[Config, Values], made: dict[str, Any], latents: LatentSpec
) -> tuple[Analysis, dict[str, Any]]:
    precision = made["settings"]["precision"]
    analysis = analyse(
        values["reference"],
        values["engine"],
        {
            "fp32" if engine == "engine32" else precision: (values[engine], values[rounded])
            for engine, rounded in _EARLY
            if rounded in values
        },
        ("d_loss", "g_loss", *(f"mi_{name}" for name in latents.names)),
        _FP16_MAY_SKIP if precision == "fp16" else 0.0,
    )
    document = _finite({
        "verdict": analysis.verdict,
        "difference_detected": bool(analysis.differences),
        "equivalent": analysis.equivalent,
        **made,
        "limits": {
            "alpha": statistics.ALPHA,
            "tolerance_times_rounding": statistics.TOLERANCE,
            "negligible_nats": statistics.NEGLIGIBLE,
            "margin_nats": statistics.MARGIN,
        },
        "skipped": analysis.skipped,
        "early": [asdict(each) for each in analysis.early],
        "whole": [{**asdict(d), "equivalent": d.equivalent} for d in analysis.whole],
        "windows": [{**asdict(d), "equivalent": d.equivalent} for d in analysis.windows],
    })  # fmt: skip
    draw_parity(panels(latents, values), path / PICTURE)
    write_json(path / REPORT, document)
    return analysis, document


def panels(spec: LatentSpec, values: Mapping[Config, Values]) -> list[Panel]:
    """List the picture's panels: both losses, and L_I of the categorical and continuous codes."""
    kinds = [isinstance(code, Categorical) for code in spec.codes]
    shown: list[tuple[str, list[int], float | None]] = [
        ("$D$'s loss", [0], None), ("$G$'s loss", [1], None)
    ]  # fmt: skip
    for kind in (True, False):
        codes = [i for i, each in enumerate(kinds) if each == kind]
        if codes:
            names = [spec.names[i] for i in codes]
            between = " and " if len(names) == 2 else " to "
            title = names[0] if len(names) == 1 else f"{names[0]}{between}{names[-1]}, summed"
            entropy = sum(spec.codes[i].entropy for i in codes) if kind else None
            shown.append((f"$L_I$ of {title}", [2 + i for i in codes], entropy))
    configs: tuple[Config, ...] = ("reference", "engine")
    return [
        Panel(title, {c: values[c][:, :, columns].sum(axis=2) for c in configs}, entropy)
        for title, columns, entropy in shown
    ]


def table(found: Analysis, seeds: int) -> list[str]:
    """Write the report for a terminal, a line a quantity; all in nats."""
    lines = [
        f"{'nats':<8}{'reference':>10}{'engine':>9}  {'difference':<27}{'detectable':>11}"
        f"{'seeds':>8}{'early':>12}  windows"
    ]
    for d in found.whole:
        early = [f"{e.ratio:.2f}" for e in found.early if e.quantity == d.quantity]
        windows = [w for w in found.windows if w.quantity == d.quantity]
        largest = max((abs(w.difference) for w in windows), default=math.nan)
        lines.append(
            f"{d.quantity:<8}{d.reference:>10.4f}{d.engine:>9.4f}  "
            f"{f'{d.difference:+.4f} ({d.low:+.4f} to {d.high:+.4f})':<27}{d.detectable:>11.4f}"
            f"{d.seed_deviation:>8.4f}{'  '.join(early):>12}  up to {largest:.3f}, "
            f"{sum(w.equivalent for w in windows)} of {len(windows)} equivalent"
        )
    precisions = " and in ".join(dict.fromkeys(e.precision for e in found.early))
    return [
        *lines,
        f"means over the whole run and {seeds} seeds; difference: engine - reference, paired by "
        "seed, with its 95 % interval;",
        "detectable: the least difference that the tests detect; seeds: the reference's "
        "deviation from seed to seed;",
        "early: the difference in the first iterations, in multiples of what rounding makes of "
        f"the reference itself, in {precisions}",
        f"verdict: {found.verdict}",
    ]


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Replace what JSON has no number for by null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
