"""The report: what the trajectories show, as JSON, a picture and a table."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.parity import statistics
from bench.parity.configs import Config, Setup
from bench.parity.statistics import Analysis, analyse
from bench.parity.trajectories import (
    PICTURE,
    REPORT,
    Progress,
    Values,
    read_saved,
    train_missing,
)
from fastinfogan import experiments
from fastinfogan.engine.config import versions
from fastinfogan.errors import InputError
from fastinfogan.files import replacing, write_json
from fastinfogan_kernels.latents import Categorical, LatentSpec

_EARLY: Final[tuple[tuple[Config, Config], ...]] = (
    ("engine", "rounded"), ("engine32", "rounded32"),
)  # fmt: skip
_FP16_MAY_SKIP: Final = 0.01
"""Of the iterations: by an overflow the loss scale finds out that it is too large."""
_STYLES: Final[tuple[tuple[Config, str, Any], ...]] = (
    ("reference", "#c65a11", "-"), ("engine", "#1f5fa8", (0, (4, 2))),
)  # fmt: skip
_POINTS: Final = 100  # means that a line is made of, if there are as many iterations


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
    values, machines = train_missing(path, setup, seeds, progress)
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
    _draw(latents, values, path / PICTURE)
    write_json(path / REPORT, document)
    return analysis, document


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Replace what JSON has no number for by null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(found: Analysis, seeds: int) -> list[str]:
    """Write the report for a terminal, a line a quantity; all in nats."""
    lines = [
        f"{'nats':<8}{'reference':>10}{'engine':>9}  {'difference':<27}{'detectable':>11}"
        f"{'seeds':>8}{'early':>12}  windows"
    ]
    for d in found.whole:
        early = [f"{e.ratio:.2f}" for e in found.early if e.quantity == d.quantity]
        windows = [w for w in found.windows if w.quantity == d.quantity]
        largest = max(abs(w.difference) for w in windows)
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


def _panels(spec: LatentSpec) -> Iterator[tuple[str, list[int], float | None]]:
    """Yield title, quantities and H(c) of both losses and L_I of each kind of code."""
    yield "$D$'s loss", [0], None
    yield "$G$'s loss", [1], None
    for kind in (True, False):
        codes = [i for i, code in enumerate(spec.codes) if isinstance(code, Categorical) == kind]
        if codes:
            names = [spec.names[i] for i in codes]
            between = " and " if len(names) == 2 else " to "
            title = names[0] if len(names) == 1 else f"{names[0]}{between}{names[-1]}, summed"
            entropy = sum(spec.codes[i].entropy for i in codes) if kind else None
            yield f"$L_I$ of {title}", [2 + i for i in codes], entropy


def _draw(spec: LatentSpec, trajectories: Mapping[Config, Values], file: Path) -> None:
    """Draw each configuration's mean over seeds as a line and its least and greatest as a band."""
    from matplotlib.figure import Figure

    panels = list(_panels(spec))
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9.0, 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False, sharex=True)
    for axes, (title, quantities, entropy) in zip(grid.flat, panels, strict=False):
        low, high = np.inf, -np.inf
        for config, colour, style in _STYLES:
            x, means = _smooth(trajectories[config][:, :, quantities].sum(axis=2))
            axes.fill_between(
                x, means.min(axis=0), means.max(axis=0), color=colour, alpha=0.2, linewidth=0
            )
            axes.plot(x, means.mean(axis=0), color=colour, linestyle=style, label=config)
            # The first iterations would press all the others together.
            settled = means[:, x >= x[-1] * 0.02]
            if np.isfinite(settled).any():
                low, high = min(low, np.nanmin(settled)), max(high, np.nanmax(settled))
        if entropy is not None:
            axes.axhline(entropy, color="0.55", linewidth=0.9, linestyle=":", label="H(c)")
            high = max(high, entropy)
        if low < high:
            axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axes.set(title=title, ylabel="nats", xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    with replacing(file) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _smooth(values: Values) -> tuple[NDArray[np.float64], Values]:
    """Average over some iterations each: where they are, and (seeds, means); NaN is left out."""
    seeds, iterations = values.shape
    size = max(iterations // _POINTS, 1)
    count = iterations // size
    parts = values[:, : count * size].reshape(seeds, count, size)
    return (np.arange(count) + 0.5) * size + 0.5, statistics.means(parts, 2)
