"""Timing two things on a noisy machine: turn by turn, in one process, medians and quartiles."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Times of two sides, one of each per round.

    Attributes:
        ours: seconds.
        peer: seconds.
    """

    ours: list[float]
    peer: list[float]

    def clear(self) -> None:
        """Forget the rounds so far."""
        self.ours.clear()
        self.peer.clear()

    @property
    def ratios(self) -> list[float]:
        """Ours / peer of each round: what disturbs both sides of a round cancels."""
        return [a / b for a, b in zip(self.ours, self.peer, strict=True)]

    @property
    def ratio(self) -> float:
        """Median ratio; below 1 we are faster."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the ratio."""
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return low, high


class Interleaved:
    """Runs one of ours, then one of the peer's, and keeps both times.

    Args:
        ours: what we time.
        peer: what it is compared with.
    """

    def __init__(self, ours: Callable[[], object], peer: Callable[[], object]) -> None:
        self._sides = (ours, peer)
        self.times = Pair([], [])

    def __call__(self) -> None:
        """One round."""
        for run, times in zip(self._sides, (self.times.ours, self.times.peer), strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
