"""Rows as a text table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from bench.timing.rows import Row

if TYPE_CHECKING:
    from bench.timing.interleaved import Spread

_GAP = "  "


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Write each group's rows under a heading, and below what was not measured and why.

    A ratio is fastinfogan's time over the baseline's, median (quartiles); below 1 it is faster. The
    share is of the roofline; small operands stay in caches and may exceed 1.
    """
    for group in dict.fromkeys(row.group for row in rows):
        yield from _group(group, [row for row in rows if row.group == group])


def _group(group: str, rows: Sequence[Row]) -> Iterator[str]:
    baselines = list(dict.fromkeys(name for row in rows for name in row.ratios))
    shares = any(row.share is not None for row in rows)
    energies = any(row.joules for row in rows)
    heading = [group, "fastinfogan", *(f"of {name}" for name in baselines)]
    heading += ["of the roofline"] * shares + ["joules"] * energies
    table = [heading]
    for row in rows:
        cells = [row.name, duration(row.seconds["fastinfogan"].median)]
        cells += [_ratio(row, name) for name in baselines]
        if shares:
            cells.append("" if row.share is None else f"{row.share:.2f}")
        if energies:
            cells.append(_joules(row.joules or {}))
        table.append(cells)
    widths = [max(len(cells[i]) for cells in table) for i in range(len(heading))]
    for cells in table:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        yield _GAP.join([first, *rest]).rstrip()
    for note in dict.fromkeys(row.more["left out"] for row in rows if row.more.get("left out")):
        yield f"  not measured: {note}"
    for row in rows:
        for name, aim in _missed(row):
            yield f"  above its aim: {row.name}, {aim:g} of {name}"
    yield ""


def _ratio(row: Row, baseline: str) -> str:
    spread: Spread | None = row.ratios.get(baseline)
    if spread is None:
        return ""
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def _missed(row: Row) -> Iterator[tuple[str, float]]:
    aims: Mapping[str, float] = row.more.get("aims", {})
    for name, aim in aims.items():
        if name in row.ratios and row.ratios[name].median > aim:
            yield name, aim


def _joules(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in found.items())


def duration(seconds: float) -> str:
    """Write seconds as in "35.1 us", "12.3 ms", "1.25 s"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
