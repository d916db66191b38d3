"""Measure a case: check its results, then time it interleaved with its baselines."""

from collections.abc import Callable

from bench.cases import Case
from bench.timing.clock import HostClock, Stretch, clock_for
from bench.timing.energy import joules
from bench.timing.interleaved import Interleaved
from bench.timing.roofline import Roofline
from bench.timing.rows import Row

FASTINFOGAN = "fastinfogan"


def measure(
    case: Case,
    roofline: Roofline,
    *,
    rounds: int = 15,
    budget: float = 5.0,
    timing: Callable[[Interleaved, int, float], None] = Interleaved.time,
    energy: bool = True,
) -> Row:
    """Check a case, then time it interleaved with its baselines.

    Args:
        case: what is measured.
        roofline: of the device.
        rounds: of timing, at the most.
        budget: seconds for them; three rounds are timed whatever they take.
        timing: runs the rounds.
        energy: whether to measure joules, too, in more than half a second for each implementation.

    Raises:
        MismatchError: results differ from the reference's; nothing is timed.
    """
    case.check()
    by_host = case.timed == "host"
    pair = Interleaved(
        {FASTINFOGAN: case.run, **case.baselines},
        HostClock(roofline.device) if by_host else clock_for(roofline.device),
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
    energies = {
        name: found / case.units
        for name, stretch in pair.stretches.items()
        if energy
        and not by_host
        and (found := joules(stretch, seconds[name].median * case.units, roofline.device))
        is not None
    }
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
        energies or None,
        _how(pair.stretches[FASTINFOGAN]),
        case.more,
    )
    pair.release()
    return row


def _how(stretch: Stretch) -> str:
    parts = [f"repeat {stretch.repeat}"]
    if stretch.captured:
        parts.append(f"graph, {stretch.cache} cache")
    return ", ".join(parts)
