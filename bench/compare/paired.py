"""Whether a tree is slower than another, from times taken alternately on a machine others use too.

In each round both trees are timed one right after the other, and only the ratio of the two counts:
what slows both alike cancels. A tree is slower if an exact sign test rejects, at `LEVEL`, that the
median ratio is at most 1 + `MARGIN`: in more than about three quarters of the rounds it has to be
slower by more than that. The sign test asks nothing of the noise's distribution, and a burst in
a quarter of the rounds does not move it. Rounds of one pair of processes are not independent,
however; so a regression is one only if a second pair of processes shows it as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bench.timing.interleaved import Spread

MARGIN: Final = 0.05
"""A relative change up to this is none."""
LEVEL: Final = 0.005
"""Of the test of one set of rounds."""
ROUNDS: Final = 32
FEWEST: Final = math.ceil(-math.log2(LEVEL))
"""Rounds below which no test can reject."""

Verdict = Literal["slower", "faster", "no difference"]


@dataclass(frozen=True)
class Comparison:
    """Of one set of rounds.

    Attributes:
        verdict: of the sign test.
        ratio: quartiles of head's times over base's.
    """

    verdict: Verdict
    ratio: Spread


def compare_times(base: Sequence[float], head: Sequence[float]) -> Comparison:
    """Test whether head's times differ from base's.

    Args:
        base: seconds of each round.
        head: seconds of the same rounds; at least `FEWEST`.
    """
    ratios = [after / before for before, after in zip(base, head, strict=True)]
    verdict: Verdict = "no difference"
    if _sign_test(sum(ratio > 1 + MARGIN for ratio in ratios), len(ratios)) < LEVEL:
        verdict = "slower"
    elif _sign_test(sum(ratio < 1 - MARGIN for ratio in ratios), len(ratios)) < LEVEL:
        verdict = "faster"
    return Comparison(verdict, Spread.of(ratios))


def _sign_test(successes: int, trials: int) -> float:
    """Return the probability of so many successes or more, at even odds."""
    return sum(math.comb(trials, k) for k in range(successes, trials + 1)) / 2**trials
