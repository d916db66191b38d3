"""Draw the trajectories of two configurations over several seeds, a panel a quantity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastinfogan.files import replacing

_COLOURS = ("#c65a11", "#1f5fa8")
_COLUMNS = 2
_POINTS = 100  # means a line is made of, if there are as many iterations


@dataclass(frozen=True)
class Panel:
    """A quantity's trajectories.

    Attributes:
        title: the quantity.
        values: (seeds, iterations) by configuration; the same two in all panels.
        limit: a level to draw, H(c) of a code; None for none.
    """

    title: str
    values: Mapping[str, NDArray[np.float64]]
    limit: float | None = None


def draw_parity(panels: Sequence[Panel], file: Path) -> Path:
    """Draw each configuration's mean over seeds as a line and its least and greatest as a band.

    Args:
        panels: from left to right, then down; in nats.
        file: the PNG to write; its folder is there.

    Returns:
        The file.
    """
    from matplotlib.figure import Figure

    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(9.0, 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        low, high = np.inf, -np.inf
        for (name, values), colour, style in zip(
            panel.values.items(), _COLOURS, ("-", (0, (4, 2))), strict=True
        ):
            places, means = _smooth(values)
            axes.fill_between(
                places, means.min(axis=0), means.max(axis=0), color=colour, alpha=0.2, linewidth=0
            )
            axes.plot(
                places, means.mean(axis=0), color=colour, linestyle=style, linewidth=1.5, label=name
            )
            # The first iterations would press all the others together.
            settled = means[:, places >= places[-1] * 0.02]
            if np.isfinite(settled).any():
                low, high = min(low, np.nanmin(settled)), max(high, np.nanmax(settled))
        if panel.limit is not None:
            axes.axhline(panel.limit, color="0.55", linewidth=0.9, linestyle=":", label="H(c)")
            high = max(high, panel.limit)
        if low < high:
            axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axes.set(title=panel.title, ylabel="nats", xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    with replacing(file) as partial:
        figure.savefig(partial, dpi=110, format="png")
    return file


def _smooth(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over some iterations each: where they are, and (seeds, means); NaN is left out."""
    seeds, iterations = values.shape
    size = max(iterations // _POINTS, 1)
    count = iterations // size
    parts = values[:, : count * size].reshape(seeds, count, size)
    there = np.isfinite(parts)
    sums = np.where(there, parts, 0.0).sum(axis=2)
    with np.errstate(invalid="ignore"):
        means = sums / there.sum(axis=2)
    return (np.arange(count) + 0.5) * size + 0.5, means
