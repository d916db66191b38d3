"""Plots of a report, as SVG to stand in a page; none without matplotlib."""

import io
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from bench.gpu_report.report import Report

Plot = Callable[[Report, Any], bool]


def plots(report: Report) -> dict[str, str]:
    """By stage an SVG, of those that have something to show; empty without matplotlib."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    found = {}
    for name, draw in _PLOTS.items():
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        try:
            drawn = draw(report, figure)
        except Exception as error:
            # A page without one plot is worth more than no page.
            found[name] = f"<p>no plot: {type(error).__name__}: {error}</p>"
            continue
        if drawn:
            text = io.StringIO()
            figure.savefig(
                text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
            )
            found[name] = text.getvalue()[text.getvalue().index("<svg") :]
    return found


def _good(report: Report, stage: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(ln.name, ln.numbers) for ln in report.stage(stage).lines if ln.numbers]


def _iteration(report: Report, figure: Any) -> bool:  # noqa: ANN401
    latest: dict[tuple[str, Any], Mapping[str, Any]] = {}
    for name, numbers in _good(report, "iteration"):
        if "us, fastinfogan" in numbers:
            latest[name.split(", with")[0], 0] = numbers
    rows = [(name, numbers) for (name, _), numbers in latest.items()]
    if not rows:
        return False
    sides = list(dict.fromkeys(k[4:] for _, n in rows for k in n if k.startswith("us, ")))
    axes = figure.subplots()
    width = 0.8 / len(sides)
    for i, side in enumerate(sides):
        at = [j + i * width for j, (_, n) in enumerate(rows) if f"us, {side}" in n]
        heights = [n[f"us, {side}"] for _, n in rows if f"us, {side}" in n]
        axes.bar(at, heights, width, label=side)
    axes.set_xticks([j + 0.4 - width / 2 for j in range(len(rows))], [name for name, _ in rows],
                    fontsize=7)  # fmt: skip
    axes.set(ylabel="µs an iteration", yscale="log")
    axes.legend(fontsize=7)
    return True


def _scaling(report: Report, figure: Any) -> bool:  # noqa: ANN401
    series: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for _, n in _good(report, "scaling"):
        series[n["experiment"]].append((n["batch"], n["us"]))
    if not series:
        return False
    left, right = figure.subplots(1, 2)
    for name, points in series.items():
        batches, times = zip(*sorted(points), strict=True)
        left.plot(batches, times, marker="o", label=name)
        rates = [1e6 * b / t for b, t in sorted(points)]
        right.plot(batches, rates, marker="o", label=name)
    left.set(xlabel="batch", ylabel="µs an iteration", xscale="log", yscale="log")
    right.set(xlabel="batch", ylabel="images/s", xscale="log", yscale="log")
    left.legend(fontsize=7)
    return True


def _mnist(report: Report, figure: Any) -> bool:  # noqa: ANN401
    curve = report.stage("mnist").facts.get("curve") or []
    if not curve:
        return False
    left, right = figure.subplots(1, 2)
    at = [line["iteration"] for line in curve]
    for axes, names in ((left, ("d_loss", "g_loss")), (right, ("mi_c1", "mi_c2", "mi_c3"))):
        for name in names:
            axes.plot(at, [line[name] for line in curve], label=name)
        axes.set(xlabel="iteration", ylabel="nats")
        axes.legend(fontsize=7)
    return True


def _tuning(report: Report, figure: Any) -> bool:  # noqa: ANN401
    rows = [n for _, n in _good(report, "tuning") if "of the rule" in n]
    if not rows:
        return False
    axes = figure.subplots()
    for which in ("forward", "data_gradient", "weight_gradient"):
        of = [n for n in rows if n["pass"] == which]
        axes.scatter([n["us, the rule"] for n in of], [n["of the rule"] for n in of], s=12,
                     label=which)  # fmt: skip
    axes.axhline(1, color="grey", lw=0.8)
    axes.set(xlabel="µs by the rule", ylabel="best, of the rule's time", xscale="log")
    axes.legend(fontsize=7)
    return True


def _correctness(report: Report, figure: Any) -> bool:  # noqa: ANN401
    rows = [n for _, n in _good(report, "correctness") if "torch error" in n]
    if not rows:
        return False
    axes = figure.subplots()
    tiny = 1e-9
    axes.scatter([max(_number(n["torch error"]), tiny) for n in rows],
                 [max(_number(n["error"]), tiny) for n in rows], s=8)  # fmt: skip
    axes.plot([tiny, 1], [tiny, 1], color="grey", lw=0.8)
    axes.set(xlabel="torch's error, of the truth", ylabel="ours", xscale="log", yscale="log")
    return True


def _profile(report: Report, figure: Any) -> bool:  # noqa: ANN401
    rows = (report.stage("profile").facts.get("table of mnist, as trained") or [])[:14]
    if not rows:
        return False
    axes = figure.subplots()
    axes.barh([row["name"][:48] for row in reversed(rows)], [row["us"] for row in reversed(rows)])
    axes.set(xlabel="µs in one iteration of MNIST")
    axes.tick_params(axis="y", labelsize=6)
    return True


def _memory(report: Report, figure: Any) -> bool:  # noqa: ANN401
    rows = [n for _, n in _good(report, "memory") if "MiB allocated" in n]
    if not rows:
        return False
    axes = figure.subplots()
    where = list(dict.fromkeys((n["experiment"], n["batch"]) for n in rows))
    sides = list(dict.fromkeys(n["side"] for n in rows))
    width = 0.8 / len(sides)
    for i, side in enumerate(sides):
        of = {(n["experiment"], n["batch"]): n["MiB allocated"] for n in rows if n["side"] == side}
        at = [j + i * width for j, key in enumerate(where) if key in of]
        axes.bar(at, [of[key] for key in where if key in of], width, label=side)
    axes.set_xticks([j + 0.3 for j in range(len(where))], [f"{e} {b}" for e, b in where],
                    fontsize=7)  # fmt: skip
    axes.set(ylabel="MiB at the peak", yscale="log")
    axes.legend(fontsize=7)
    return True


def _number(value: Any) -> float:  # noqa: ANN401 - a number that was not finite is a word
    return float(value) if isinstance(value, int | float) else 1.0


_PLOTS: dict[str, Plot] = {
    "correctness": _correctness,
    "iteration": _iteration,
    "mnist": _mnist,
    "tuning": _tuning,
    "scaling": _scaling,
    "memory": _memory,
    "profile": _profile,
}
