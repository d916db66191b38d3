"""Several implementations timed interleaved in one process: what disturbs a round disturbs all."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.timing.clock import Clock, Run


@dataclass(frozen=True)
class Spread:
    """Quartiles of some numbers."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Compute the quartiles of two numbers or more."""
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Times:
    """Seconds of each implementation in each round.

    Attributes:
        seconds: by name, a number a round; all of the same length.
    """

    seconds: Mapping[str, Sequence[float]]

    def ratio(self, one: str, other: str) -> Spread:
        """Return the quartiles of each round's ratio; below 1 the first is faster."""
        pairs = zip(self.seconds[one], self.seconds[other], strict=True)
        return Spread.of([a / b for a, b in pairs])

    def spread(self, name: str) -> Spread:
        return Spread.of(self.seconds[name])


class Interleaved:
    """Times all implementations once a round, each round beginning with the next one.

    Args:
        runs: by name; each is warmed up here.
        clock: of their device.
        steady: see `Clock.prepare`.
        units: that a run does; times are of one of them.
    """

    def __init__(
        self, runs: Mapping[str, Run], clock: Clock, *, steady: bool = False, units: int = 1
    ) -> None:
        self.stretches = {name: clock.prepare(run, steady=steady) for name, run in runs.items()}
        # All under the same conditions: a cache that is warm for one alone is a head start.
        if any(each.cache == "warm" for each in self.stretches.values()):
            for each in self.stretches.values():
                each.leave_warm()
        self._units = units
        self._seconds: dict[str, list[float]] = {name: [] for name in runs}
        self._round = 0

    def __call__(self) -> None:
        names = list(self.stretches)
        first = self._round % len(names)
        for name in names[first:] + names[:first]:
            self._seconds[name].append(self.stretches[name].seconds() / self._units)
        self._round += 1

    def time(self, rounds: int, budget: float) -> None:
        """Time so many rounds, or at least three within a budget of seconds."""
        begun = time.perf_counter()
        for done in range(rounds):
            if done >= 3 and time.perf_counter() - begun > budget:
                return
            self()

    @property
    def times(self) -> Times:
        return Times({name: tuple(each) for name, each in self._seconds.items()})

    def clear(self) -> None:
        for each in self._seconds.values():
            each.clear()

    def release(self) -> None:
        for stretch in self.stretches.values():
            stretch.release()
