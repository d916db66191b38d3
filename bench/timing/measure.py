"""Measure a case: check its results, then time it interleaved with its baselines."""

from collections.abc import Callable

from bench.cases import Case
from bench.timing.clock import Clock, clock_for
from bench.timing.interleaved import Interleaved
from bench.timing.roofline import Roofline
from bench.timing.rows import FASTINFOGAN, Row


def measure(
    case: Case,
    roofline: Roofline,
    *,
    rounds: int = 15,
    budget: float = 5.0,
    timing: Callable[[Interleaved, int, float], None] = Interleaved.time,
) -> Row:
    """Check a case, then time it interleaved with its baselines.

    Args:
        case: what is measured.
        roofline: of the device.
        rounds: of timing, at the most.
        budget: seconds for them; three rounds are timed whatever they take.
        timing: runs the rounds.

    Raises:
        MismatchError: results differ from the reference's; nothing is timed.
    """
    case.check()
    by_host = case.timed == "host"
    pair = Interleaved(
        {FASTINFOGAN: case.run, **case.baselines},
        Clock(roofline.device) if by_host else clock_for(roofline.device),
        steady=case.timed == "steady",
        units=case.units,
    )
    if not by_host:
        pair()  # the first round pays for what is set up once
        pair.clear()
    timing(pair, rounds, budget)
    times = pair.times
    seconds = {name: times.spread(name) for name in times.seconds}
    share = None
    if case.precision:
        taken = seconds[FASTINFOGAN].median
        share = roofline.share(case.precision, case.flops, case.bytes, taken)
    stretch = pair.stretches[FASTINFOGAN]
    graph = f", graph, {stretch.cache} cache" if stretch.captured else ""
    row = Row(
        case.group,
        case.name,
        len(times.seconds[FASTINFOGAN]),
        seconds,
        {name: times.ratio(FASTINFOGAN, name) for name in case.baselines},
        case.experiment,
        case.precision,
        case.batch,
        case.flops,
        case.bytes,
        share,
        f"repeat {stretch.repeat}{graph}",
        case.more,
    )
    pair.release()
    return row
