"""Whether head is slower than base, from times taken by turns on a machine that others use too.

What the numbers are. In each round base and head are timed one right after the other, the order
turning from round to round, and only the ratio of the two is looked at: what slows both alike
cancels. Four rounds in a row, two of each order, are a block, and its ratio is the median of its
rounds' logarithms: a spike that hits one timing is gone, and so is a steady drift. Times are judged
by the blocks' median and quartiles.

What sigma is. Disturbances of a shared machine last longer than a round, so rounds are not
independent, and their scatter over the root of their number would promise too much. Sigma is the
standard error of the median ratio, 1.2533 s / sqrt(n), computed three times: from single rounds,
from pairs of them and from blocks, each with its own n and its own robust scatter s, the distance
of the quartiles over 1.349. Independent noise gives the same three times but for chance, noise that
lasts gives more from longer stretches; the largest of the three is taken. (So do physicists with
correlated series: H. Flyvbjerg and H. G. Petersen, J. Chem. Phys. 91, 461, 1989.) Quartiles, not
squares: one burst must not hide a regression behind a large sigma.

What a regression is. The median ratio is beyond 1 + max(5 %, 3 sigma), the lower quartile of the
blocks is beyond it too, and both are so in a second set of rounds, taken by new processes. The
quartile asks that three quarters of the time agree; the new processes, that it is not how one
process happened to lie in memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.timing.interleaved import Spread

FLOOR = 0.05
"""A change smaller than this is never a verdict."""
SIGMAS = 3.0
BLOCK = 4
"""Rounds of a block; even, so that each order is timed as often as the other."""
FEWEST = 5
"""Blocks below which quartiles say nothing."""

Verdict = Literal["slower", "faster", "same", "unclear"]
Final = Literal["regression", "not confirmed", "faster", "same", "unclear"]


@dataclass(frozen=True)
class Judged:
    """What a set of rounds says.

    Attributes:
        verdict: "unclear" if there are too few rounds.
        rounds: judged.
        ratio: quartiles of the blocks' head / base; None if unclear.
        sigma: the standard error of its median, see above; None if unclear.
        note: what was odd, or empty.
    """

    verdict: Verdict
    rounds: int
    ratio: Spread | None = None
    sigma: float | None = None
    note: str = ""

    @property
    def beyond(self) -> float | None:
        """The change from which this set would be a verdict, max(5 %, 3 sigma)."""
        return None if self.sigma is None else max(FLOOR, SIGMAS * self.sigma)


def judge(base: Sequence[float], head: Sequence[float]) -> Judged:
    """Judge one set of rounds.

    Args:
        base: seconds of each round.
        head: of the same rounds.

    Returns:
        The verdict. A round with a time that is not a positive number is left out, and told.

    Raises:
        ValueError: the sides have not as many rounds.
    """
    if len(base) != len(head):
        raise ValueError(f"{len(base)} rounds of base, {len(head)} of head")
    one, other = np.asarray(base, np.float64), np.asarray(head, np.float64)
    sound = np.isfinite(one) & np.isfinite(other) & (one > 0) & (other > 0)
    note = ""
    if not sound.all():
        number = int(np.argmin(sound))
        note = (
            f"{int((~sound).sum())} of {len(sound)} rounds left out: round {number + 1} took "
            f"{one[number]:g} s and {other[number]:g} s"
        )
    logs = np.log(other[sound]) - np.log(one[sound])
    blocks = _medians(logs, BLOCK)
    if len(blocks) < FEWEST:
        few = f"{len(logs)} rounds are too few, {FEWEST * BLOCK} are needed"
        return Judged("unclear", len(logs), note="; ".join(filter(None, (note, few))))
    low, median, high = np.quantile(blocks, (0.25, 0.5, 0.75))
    sigma = max(_standard_error(_medians(logs, length)) for length in (1, 2, BLOCK))
    ratio = Spread(math.exp(low), math.exp(median), math.exp(high))
    beyond = math.log1p(max(FLOOR, SIGMAS * sigma))
    # The lower quartile is no larger than the median; both are asked for by name all the same.
    verdict: Verdict = "same"
    if median > beyond and low > beyond:
        verdict = "slower"
    elif median < -beyond and high < -beyond:
        verdict = "faster"
    return Judged(verdict, len(logs), ratio, sigma, note)


def conclude(first: Judged, second: Judged | None) -> Final:
    """What both sets say together.

    Args:
        first: what is suspected.
        second: an independent set of rounds; None if nothing was suspected.
    """
    if first.verdict != "slower":
        return first.verdict
    return "regression" if second is not None and second.verdict == "slower" else "not confirmed"


def _medians(logs: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Of whole stretches of so many rounds."""
    whole = len(logs) // length * length
    found: NDArray[np.float64] = np.median(logs[:whole].reshape(-1, length), axis=1)
    return found


def _standard_error(values: NDArray[np.float64]) -> float:
    """Of the median, by the distance of the quartiles."""
    low, high = np.quantile(values, (0.25, 0.75))
    return 1.2533 * float(high - low) / 1.349 / math.sqrt(len(values))
