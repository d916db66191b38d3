"""A case measured: first that it is right, then how long it takes."""

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
    timing: Callable[[Interleaved, int, float], None] = Interleaved.go_on,
    weigh: bool = True,
) -> Row:
    """Check a case, then time its sides turn by turn.

    Args:
        case: what is measured.
        roofline: of the device, for the share.
        rounds: of timing, at the most.
        budget: seconds for them; three rounds are timed whatever they take.
        timing: runs the rounds.
        weigh: also for its energy, which takes more than half a second a side.

    Raises:
        MismatchError: it does not compute what the reference does; nothing is timed.
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
    seconds = {side: times.spread(side) for side in times.seconds}
    floor = roofline.floor(case.precision, case.flops, case.bytes) if case.precision else 0.0
    energies = {
        side: found / case.units
        for side, stretch in pair.stretches.items()
        if weigh
        and not by_host
        and (found := joules(stretch, seconds[side].median * case.units, roofline.device))
        is not None
    }
    row = Row(
        case.group,
        case.name,
        len(times.seconds[FASTINFOGAN]),
        seconds,
        {peer: times.ratio(FASTINFOGAN, peer) for peer in case.baselines},
        case.experiment,
        case.precision,
        case.batch,
        case.flops,
        case.bytes,
        floor / seconds[FASTINFOGAN].median if floor else None,
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
