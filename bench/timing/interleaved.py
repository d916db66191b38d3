"""Several sides timed turn by turn, in one process: what disturbs a round disturbs all of them."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.timing.clock import Clock, Run, Stretch


@dataclass(frozen=True)
class Spread:
    """Quartiles of some numbers."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of two numbers or more."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)


@dataclass(frozen=True)
class Times:
    """Seconds of each side in each round.

    Attributes:
        seconds: by side, a number a round; all of the same length.
    """

    seconds: Mapping[str, Sequence[float]]

    def ratios(self, one: str, other: str) -> list[float]:
        """Of each round: what disturbs both sides of a round cancels."""
        return [a / b for a, b in zip(self.seconds[one], self.seconds[other], strict=True)]

    def ratio(self, one: str, other: str) -> Spread:
        """Quartiles of `ratios`; below 1 the one is faster."""
        return Spread.of(self.ratios(one, other))

    def spread(self, side: str) -> Spread:
        """Quartiles of a side's seconds."""
        return Spread.of(self.seconds[side])


class Interleaved:
    """Times all sides once a round, each round beginning with the next one.

    Args:
        sides: by name; each is warmed up here.
        clock: of their device.
        steady: see `Clock.prepare`.
        units: that a run does; times are of one of them.
    """

    def __init__(
        self, sides: Mapping[str, Run], clock: Clock, *, steady: bool = False, units: int = 1
    ) -> None:
        self.stretches: dict[str, Stretch] = {
            name: clock.prepare(run, steady=steady) for name, run in sides.items()
        }
        # All under the same conditions: a cache that is warm for one side alone is a head start.
        if any(each.cache == "warm" for each in self.stretches.values()):
            for each in self.stretches.values():
                each.leave_warm()
        self._units = units
        self._seconds: dict[str, list[float]] = {name: [] for name in sides}
        self._round = 0

    def __call__(self) -> None:
        """One round."""
        for name in self._order():
            self._seconds[name].append(self.stretches[name].seconds() / self._units)
        self._round += 1

    def _order(self) -> Iterator[str]:
        names = list(self.stretches)
        first = self._round % len(names)
        yield from names[first:]
        yield from names[:first]

    def go_on(self, rounds: int, budget: float) -> None:
        """Time so many rounds, or as many, at least three, as a budget of seconds allows."""
        begun = time.perf_counter()
        for done in range(rounds):
            if done >= 3 and time.perf_counter() - begun > budget:
                return
            self()

    @property
    def times(self) -> Times:
        """Of the rounds so far."""
        return Times({name: tuple(each) for name, each in self._seconds.items()})

    def clear(self) -> None:
        """Forget the rounds so far."""
        for each in self._seconds.values():
            each.clear()

    def release(self) -> None:
        """Give back what the clock captured."""
        for stretch in self.stretches.values():
            stretch.release()
