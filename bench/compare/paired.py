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

from scipy.stats import binom

from bench.timing.interleaved import Spread, Times

MARGIN: Final = 0.05
"""A relative change up to this is none."""
LEVEL: Final = 0.005
"""Of the test of one set of rounds."""
ROUNDS: Final = 32
FEWEST: Final = math.ceil(-math.log2(LEVEL))
"""Rounds below which no test can reject."""


@dataclass(frozen=True)
class Comparison:
    """The sign test's verdict of one set of rounds, and quartiles of head's times over base's."""

    verdict: Literal["slower", "faster", "no difference"]
    ratio: Spread


def compare_times(base: Sequence[float], head: Sequence[float]) -> Comparison:
    """Test whether head's times differ from base's.

    Args:
        base: seconds of each round.
        head: seconds of the same rounds; at least `FEWEST`.
    """
    ratios = [after / before for before, after in zip(base, head, strict=True)]
    spread = Times({"base": base, "head": head}).ratio("head", "base")
    if _rejects(sum(ratio > 1 + MARGIN for ratio in ratios), len(ratios)):
        return Comparison("slower", spread)
    if _rejects(sum(ratio < 1 - MARGIN for ratio in ratios), len(ratios)):
        return Comparison("faster", spread)
    return Comparison("no difference", spread)


def _rejects(successes: int, rounds: int) -> bool:
    """Test whether so many successes or more are improbable at even odds."""
    return bool(binom.sf(successes - 1, rounds, 0.5) < LEVEL)
