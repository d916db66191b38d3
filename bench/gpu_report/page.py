"""The report as one page that holds everything: tables, and plots if matplotlib is there."""

import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from bench.gpu_report.plots import plots
from bench.gpu_report.report import Report, StageResult, headline

NAME = "report.html"
_ROWS = 400
"""Rows of a table."""
_WIDE = 160
"""Characters of a cell."""

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 12px; margin: .6rem 0 }
th, td { border-bottom: 1px solid #ddd; padding: .15rem .6rem; text-align: left }
td { vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.bad { color: #b00020 } .quiet { color: #777 }
details { margin: .4rem 0 } svg { max-width: 100%; height: auto } img { image-rendering: pixelated }
"""


def write(report: Report, folder: Path) -> Path:
    """Write report.html."""
    file = folder / NAME
    drawn = plots(report)
    dry = " (dry run, on a CPU: times mean nothing)" if report.arguments.get("dry_run") else ""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report.started))
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>fastinfogan on a GPU</title>",
        f"<style>{_STYLE}</style>",
        f"<h1>fastinfogan on a GPU{escape(dry)}</h1>",
        f"<p class='quiet'>{when}, {report.seconds:.0f} s, "
        f"{escape(str(report.arguments.get('minutes')))} minutes asked for</p>",
        *_missing(report),
        _summary(report),
    ]
    if not drawn:
        parts.append("<p class='quiet'>No plots: matplotlib is not installed, or no rows.</p>")
    for stage in report.stages:
        parts += _section(stage, drawn.get(stage.name, ""))
    new = file.with_suffix(".new")
    new.write_text("\n".join(parts) + "\n</html>\n")
    new.replace(file)
    return file


def _missing(report: Report) -> Iterable[str]:
    missing = report.stage("environment").facts.get("missing") or {}
    if missing:
        items = "".join(f"<li>{escape(n)}: {escape(w)}</li>" for n, w in missing.items())
        yield f"<p>Not installed here:</p><ul>{items}</ul>"
    images = report.stage("environment").numbers("the images").get("images")
    if images:
        yield f"<p>MNIST is trained on {escape(str(images))}.</p>"


def _summary(report: Report) -> str:
    rows = [
        {
            "stage": stage.name,
            "state": stage.state,
            "seconds": stage.seconds,
            "of": stage.limit,
            "rows right": f"{sum(ln.state == 'ok' for ln in stage.lines)} of {len(stage.lines)}",
            "found": headline(stage),
        }
        for stage in report.stages
    ]
    return _table(rows)


def _section(stage: StageResult, plot: str) -> Iterable[str]:
    yield f"<h2 id='{escape(stage.name)}'>{escape(stage.title)}</h2>"
    bad = " class='bad'" if stage.state in ("failed", "crashed") else ""
    told = f"{stage.state}, {stage.seconds:.1f} of {stage.limit:.0f} s"
    if stage.starts > 1:
        told += f", started {stage.starts} times"
    if stage.garbage:
        told += f", {stage.garbage} lines made no sense"
    yield f"<p{bad}>{escape(told)}{escape(': ' + stage.error if stage.error else '')}</p>"
    yield plot
    picture = stage.facts.get("picture")
    if isinstance(picture, str) and picture.startswith("data:image/png;base64,"):
        yield f"<img src='{escape(picture)}' width='420' alt='what was generated'>"
    rows = [
        {
            "name": line.name,
            "state": line.state,
            "seconds": round(line.seconds, 2),
            **{k: v for k, v in line.numbers.items() if k not in ("entry", "key", "refused")},
            **({"error": line.error} if line.error else {}),
        }
        for line in stage.lines
    ]
    failed = [row for row in rows if row["state"] not in ("ok", "not reached")]
    if failed:
        yield f"<p class='bad'>Failed:</p>{_table(failed)}"
    if rows:
        shown = "" if len(rows) <= 12 else f"<summary>{len(rows)} rows</summary>"
        whole = _table(rows[:_ROWS])
        yield f"<details>{shown}{whole}</details>" if shown else whole
    for name, fact in stage.facts.items():
        if name in ("picture", "curve", "missing"):
            continue
        if isinstance(fact, list) and fact and isinstance(fact[0], Mapping):
            yield (
                f"<details><summary>{escape(name)}, {len(fact)}</summary>"
                f"{_table(fact[:_ROWS])}</details>"
            )
        else:
            yield f"<p class='quiet'>{escape(name)}: {escape(_cell(fact))}</p>"


def _table(rows: list[Any]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(str(name))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(_td(name, row.get(name, "")) for name in columns) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _td(name: str, value: Any) -> str:  # noqa: ANN401
    number = isinstance(value, int | float) and not isinstance(value, bool)
    bad = name == "state" and value not in (
        "ok",
        "out of time",
        "stopped",
        "not reached",
        "skipped",
    )
    kind = " class='n'" if number else " class='bad'" if bad else ""
    return f"<td{kind}>{escape(_cell(value))}</td>"


def _cell(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(_cell, value))
    text = str(value)
    return text if len(text) <= _WIDE else text[: _WIDE - 3] + "..."
