"""Benchmark cases, measured for the report."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.accuracy import MismatchError
from bench.cases import Case, Planned
from bench.gpu_report.stage import Context, FailedError
from bench.timing.measure import measure
from bench.timing.rows import Row


def measured(
    context: Context,
    plan: Planned,
    *,
    budget: float,
    rounds: int = 15,
    weigh: bool = True,
    check: bool = True,
) -> Mapping[str, Any]:
    """Check and time a case; one that is wrong is timed all the same, and told as wrong.

    A GPU is had for minutes: what is wrong by a rounding is not to cost its time as well. It does
    not get into the rows that are kept.

    Args:
        context: of the stage.
        plan: the case.
        budget: seconds of timing.
        rounds: at the most.
        weigh: also for its energy.
        check: False if that has been done.

    Raises:
        FailedError: it is wrong.
    """
    case = plan.make(context.device)
    wrong = _wrong(case) if check else ""
    row = measure(
        replace(case, check=_nothing),
        context.roofline,
        rounds=rounds,
        budget=budget,
        weigh=weigh,
    )
    numbers = summary(row)
    if wrong:
        raise FailedError(wrong, numbers)
    context.keep(row)
    return numbers


def _wrong(case: Case) -> str:
    try:
        case.check()
    except MismatchError as error:
        return str(error)
    return ""


def _nothing() -> None:
    pass


def summary(row: Row) -> dict[str, Any]:
    """A row for the report's tables: microseconds, ratios, share of the roofline, joules."""
    found: dict[str, Any] = {
        f"us, {side}": round(1e6 * spread.median, 2) for side, spread in row.seconds.items()
    }
    found |= {f"of {peer}": round(spread.median, 3) for peer, spread in row.ratios.items()}
    if row.share is not None:
        found["share of the roofline"] = round(row.share, 3)
    for side, joules in (row.joules or {}).items():
        found[f"mJ, {side}"] = round(1e3 * joules, 3)
    if row.experiment:
        found["experiment"] = row.experiment
    if row.batch:
        found["batch"] = row.batch
    return {**found, "rounds": row.rounds, "how": row.how}
