"""The report as one page that holds everything: tables, and plots if matplotlib is there."""

import base64
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench.gpu_report.report import GpuReport, StageResult
from bench.gpu_report.stages import PICTURE
from fastinfogan.files import write_text

NAME = "report.html"
_ROWS = 400
"""Rows of a table."""
_WIDE = 160
"""Characters of a cell."""
_HIDDEN = ("entry", "key", "refused", "curve", "missing")
_BAD = ("failed", "crashed", "hung", "no memory")
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 12px; margin: .6rem 0 }
th, td { border-bottom: 1px solid #ddd; padding: .15rem .6rem; text-align: left }
.bad { color: #b00020 } .quiet { color: #777 } svg { max-width: 100%; height: auto }
"""


def write(report: GpuReport, folder: Path) -> None:
    """Write report.html."""
    dry = " (dry run, on a CPU: times mean nothing)" if report.arguments.get("dry_run") else ""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report.started))
    summary = [
        {"stage": s.name, "state": s.state, "seconds": s.seconds, "of": s.limit,
         "right": f"{sum(i.state == 'ok' for i in s.items)} of {len(s.items)}", "error": s.error}
        for s in report.stages
    ]  # fmt: skip
    missing = report.stage("environment").facts.get("missing") or {}
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>fastinfogan on a GPU</title>",
        f"<style>{_STYLE}</style><h1>fastinfogan on a GPU{dry}</h1>",
        f"<p class='quiet'>{when}, {report.seconds:.0f} s</p>",
        *(f"<p>Not installed here: {escape(n)}, for {escape(w)}.</p>" for n, w in missing.items()),
        _table(summary),
    ]
    for stage in report.stages:
        parts += _section(stage, report, folder)
    write_text(folder / NAME, "\n".join(parts) + "\n</html>\n")


def _section(stage: StageResult, report: GpuReport, folder: Path) -> Iterable[str]:
    yield f"<h2 id='{escape(stage.name)}'>{escape(stage.title)}</h2>"
    words = f"{stage.state}, {stage.seconds:.1f} of {stage.limit:.0f} s"
    words += f", {stage.starts} starts" if stage.starts > 1 else ""
    words += f", {stage.garbage} lines made no sense" if stage.garbage else ""
    words += f": {stage.error}" if stage.error else ""
    yield f"<p{' class=bad' if stage.state in _BAD else ''}>{escape(words)}</p>"
    yield _plot(stage, report)
    if stage.name == "mnist" and (folder / PICTURE).exists():
        picture = base64.b64encode((folder / PICTURE).read_bytes()).decode()
        yield f"<img src='data:image/png;base64,{picture}' width='420' alt='what was generated'>"
    rows = [
        {"name": i.name, "state": i.state, "seconds": round(i.seconds, 2), **_visible(i.numbers),
         **({"error": i.error} if i.error else {})}
        for i in stage.items
    ]  # fmt: skip
    failed = [row for row in rows if row["state"] in _BAD]
    if failed:
        yield f"<p class='bad'>Failed:</p>{_table(failed)}"
    if rows:
        yield f"<details{' open' if len(rows) <= 12 else ''}><summary>{len(rows)} items</summary>"
        yield f"{_table(rows)}</details>"
    for name, fact in _visible(stage.facts).items():
        if isinstance(fact, list) and fact and isinstance(fact[0], Mapping):
            yield f"<details><summary>{escape(name)}, {len(fact)}</summary>{_table(fact)}</details>"
        else:
            yield f"<p class='quiet'>{escape(name)}: {escape(_cell(fact))}</p>"


def _visible(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if name not in _HIDDEN}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows[:_ROWS] for name in row))
    lines = ["".join(f"<th>{escape(str(name))}</th>" for name in columns)]
    for row in rows[:_ROWS]:
        bad = " class=bad" if row.get("state") in _BAD else ""
        lines.append("".join(f"<td{bad}>{escape(_cell(row.get(c, '')))}</td>" for c in columns))
    return f"<table><tr>{'</tr><tr>'.join(lines)}</tr></table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(_cell, value))
    text = str(value)
    return text if len(text) <= _WIDE else text[: _WIDE - 3] + "..."


def _plot(stage: StageResult, report: GpuReport) -> str:
    """A stage's plot as SVG, if it has one, and matplotlib is there to draw it."""
    draw = _PLOTS.get(stage.name)
    rows = [item.numbers for item in report.stage(stage.name).items if item.numbers]
    if draw is None or not rows:
        return ""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "<p class='quiet'>No plot: matplotlib is not installed.</p>"
    figure, text = Figure(figsize=(8, 3.2), layout="constrained"), io.StringIO()
    try:
        draw(stage, rows, figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=metadata)
    except Exception as error:  # a page without one plot is worth more than no page
        return f"<p>no plot: {escape(f'{type(error).__name__}: {error}')}</p>"
    return text.getvalue()[text.getvalue().index("<svg") :]


def _bars(stage: StageResult, rows: Sequence[Any], figure: Any) -> None:
    """Microseconds of an iteration, of each side."""
    rows = [row for row in rows if "us, fastinfogan" in row]
    sides = list(dict.fromkeys(k for row in rows for k in row if k.startswith("us, ")))
    axes, width = figure.subplots(), 0.8 / len(sides)
    for i, side in enumerate(sides):
        at = [j for j, row in enumerate(rows) if side in row]
        axes.bar([j + i * width for j in at], [rows[j][side] for j in at], width, label=side[4:])
    axes.set_xticks(range(len(rows)), [row["experiment"] for row in rows], fontsize=7)
    axes.set(ylabel="µs an iteration", yscale="log")
    axes.legend(fontsize=7)


def _scaling(stage: StageResult, rows: Sequence[Any], figure: Any) -> None:
    for axes, column in zip(figure.subplots(1, 2), ("us", "images/s"), strict=True):
        for name in dict.fromkeys(row["experiment"] for row in rows):
            points = sorted((r["batch"], r[column]) for r in rows if r["experiment"] == name)
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xlabel="batch", ylabel=column, xscale="log", yscale="log")
        axes.legend(fontsize=7)


def _mnist(stage: StageResult, rows: Sequence[Any], figure: Any) -> None:
    curve = stage.facts["curve"]
    columns = (("d_loss", "g_loss"), ("mi_c1", "mi_c2", "mi_c3"))
    for axes, names in zip(figure.subplots(1, 2), columns, strict=True):
        for name in names:
            axes.plot([line["iteration"] for line in curve], [line[name] for line in curve],
                      label=name)  # fmt: skip
        axes.set(xlabel="iteration", ylabel="nats")
        axes.legend(fontsize=7)


_PLOTS: dict[str, Callable[[StageResult, Sequence[Any], Any], None]] = {
    "iteration": _bars,
    "mnist": _mnist,
    "scaling": _scaling,
}
