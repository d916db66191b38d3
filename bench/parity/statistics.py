"""Whether two sets of trajectories differ, from nothing but their numbers.

Both configurations start from the same weights and see the same images, codes and noise, so at
first they differ by rounding alone. Training multiplies the difference, and after some tens of
iterations two correct programs are as far apart as two runs with different noise. So there are two
questions.

Early, iteration by iteration: does the engine depart from the reference by more than rounding does?
The yardstick is the reference itself, rounded as PyTorch does in the engine's precision (for fp32:
the reference in fp64). The hypothesis is that the root mean square of engine - reference is at most
`TOLERANCE` times that of rounded - reference: a t test of the seeds' logarithms of that ratio, for
each quantity, and for all together in each of the phases that double in length. Logarithms, and
capped, because rounding is now and then a thousand times larger in one seed, where it moved an
activation across a kink; a wrong gradient shows in all seeds. In bf16, errors of 20 % in a gradient
hide in rounding; so where the precision is not fp32, the engine's first iterations are compared in
fp32, too, where errors of 5 % are found.

Late, in distribution: per quantity, the means over the whole run and over each of ten windows,
engine less reference, paired by seed: t tests of whether the true difference exceeds `NEGLIGIBLE`,
which no reader of a curve sees. The seed is the independent unit, so n seeds leave n - 1 degrees of
freedom; `detectable` is the difference that is large enough to be found. Equivalence within
`MARGIN` is another statement, made only where the whole 95 % confidence interval lies within it.
Neither says anything of what is not recorded: images, or weights.

Each of the three families of tests (early, whole, windows) has a third of `ALPHA` and is corrected
by Holm's method, so that a correct engine is reported as different in at most `ALPHA` of all cases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastinfogan.errors import InputError

ALPHA: Final = 0.05
TOLERANCE: Final = 2.0
"""How many times PyTorch's own rounding errors the engine may have, early."""
NEGLIGIBLE: Final = 0.01
"""Nats; a mean difference up to this is not tested for."""
MARGIN: Final = 0.05
"""Nats; of an equivalence. About 2 % of the 2.30 of a code of ten classes."""
LEAST_SEEDS: Final = 3
WINDOWS: Final = 10
EARLY: Final = 16
"""Iterations before training has multiplied rounding by too much, in phases that double."""
_FAMILIES = 3
_CAP = 16.0  # of a ratio that is tested, and its inverse

Values = NDArray[np.float64]
"""Trajectories: (seeds, iterations, quantities); NaN where an iteration was skipped."""


@dataclass(frozen=True)
class Departure:
    """How far the engine departs from the reference in the first iterations.

    Attributes:
        precision: that the engine computed in.
        quantity: which; None for all together.
        first: iteration, counted from 0.
        end: the iteration behind the last one.
        engine: root mean square of engine - reference, over seeds and iterations.
        rounding: the same of the rounded reference.
        ratio: of the two, the geometric mean over seeds, phases and quantities.
        p: adjusted p-value of a ratio above `TOLERANCE`; NaN where nothing was finite.
    """

    precision: str
    quantity: str | None
    first: int
    end: int
    engine: float
    rounding: float
    ratio: float
    p: float


@dataclass(frozen=True)
class Difference:
    """Means over a window of iterations, engine less reference.

    Attributes:
        quantity: which.
        first: iteration, counted from 0.
        end: the iteration behind the last one.
        reference: mean over seeds.
        engine: mean over seeds.
        difference: of the two, paired by seed.
        low: of its 95 % confidence interval.
        high: of the same.
        seed_deviation: standard deviation of the reference from seed to seed.
        detectable: a difference of this size is detected, whatever the other tests show.
        p: adjusted p-value of a difference above `NEGLIGIBLE`; NaN where nothing was finite.
    """

    quantity: str
    first: int
    end: int
    reference: float
    engine: float
    difference: float
    low: float
    high: float
    seed_deviation: float
    detectable: float
    p: float

    @property
    def equivalent(self) -> bool:
        """Whether the confidence interval lies within `MARGIN` on either side of 0."""
        return max(-self.low, self.high) < MARGIN


@dataclass(frozen=True)
class Analysis:
    """What the trajectories show.

    Attributes:
        early: of each quantity, then of all together by phase.
        whole: by quantity, over the whole run.
        windows: by quantity, then by window.
        skipped: iterations that were not finite, by configuration.
        differences: that were detected, each in a few words.
    """

    early: tuple[Departure, ...]
    whole: tuple[Difference, ...]
    windows: tuple[Difference, ...]
    skipped: dict[str, int]
    differences: tuple[str, ...]

    @property
    def equivalent(self) -> list[str]:
        """Quantities whose means over the whole run are shown to be equivalent."""
        return [d.quantity for d in self.whole if d.equivalent]

    @property
    def verdict(self) -> str:
        """State the differences that were detected, or the equivalences that are shown."""
        if self.differences:
            return f"difference detected: {'; '.join(self.differences)}"
        shown = ", ".join(self.equivalent) or "no quantity"
        return f"no difference detected; equivalence within {MARGIN:g} nats shown for {shown}"


Test = TypeVar("Test", Departure, Difference)


def analyse(
    reference: Values,
    engine: Values,
    early: Mapping[str, tuple[Values, Values]],
    quantities: Sequence[str],
    may_skip: float = 0.0,
) -> Analysis:
    """Test trajectories that are paired by seed for differences.

    Args:
        reference: (seeds, iterations, quantities).
        engine: the same.
        early: by precision, the first iterations, `EARLY` or fewer, of the engine and of the
            rounded reference; the first one's engine is the one above, and may be longer.
        quantities: their names.
        may_skip: the share of the engine's iterations that may be skipped as not finite.

    Raises:
        InputError: the shapes do not fit, or there are too few seeds, or fewer iterations than
            windows.
    """
    seeds, iterations, _ = reference.shape
    parts = [values.shape[::2] for pair in early.values() for values in pair]
    if reference.shape != engine.shape or {*parts} != {(seeds, len(quantities))}:
        raise InputError(f"trajectories of shapes {reference.shape}, {engine.shape}, {parts}")
    if seeds < LEAST_SEEDS:
        raise InputError(f"{seeds} seeds; {LEAST_SEEDS} or more are needed for a test")
    if iterations < WINDOWS:
        raise InputError(f"{iterations} iterations; {WINDOWS} or more are needed, one a window")
    differences, skipped = [], {}
    for name, values, allowed in (("reference", reference, 0.0), ("engine", engine, may_skip)):
        skipped[name] = int((~np.isfinite(values)).any(axis=2).sum())
        if skipped[name] > allowed * seeds * iterations:
            differences.append(f"{skipped[name]} iterations of the {name} were not finite")
    departures = _adjusted(
        [d for name, pair in early.items() for d in _early(name, reference, *pair, quantities)]
    )
    edges = np.linspace(0, iterations, WINDOWS + 1).astype(int).tolist()
    whole = _late(reference, engine, quantities, [(0, iterations)])
    windows = _late(reference, engine, quantities, list(pairwise(edges)))
    level = ALPHA / _FAMILIES
    differences += [
        f"in {d.precision} {d.quantity or 'all'} {d.ratio:.3g} times as far apart as by rounding, "
        f"{_when(d.first, d.end)}"
        for d in departures
        if d.p < level
    ]
    differences += [
        f"{d.quantity} by {d.difference:+.3g} nats, {_when(d.first, d.end)}"
        for d in (*whole, *windows)
        if d.p < level
    ]
    return Analysis(departures, whole, windows, skipped, tuple(differences))


def _when(first: int, end: int) -> str:
    return f"iteration {end}" if end == first + 1 else f"iterations {first + 1} to {end}"


def _early(
    precision: str, reference: Values, engine: Values, rounded: Values, quantities: Sequence[str]
) -> list[Departure]:
    """Test the first iterations; p is not adjusted yet."""
    length = min(rounded.shape[1], engine.shape[1], reference.shape[1], EARLY)
    edges = [0, *(1 << k for k in range(length.bit_length()) if 1 << k < length), length]
    base, engine, rounded = (values[:, :length] for values in (reference, engine, rounded))
    # What is recorded is rounded to fp32; so no difference is surely less than this.
    unit = np.finfo(np.float32).eps * np.maximum(np.abs(base), 1e-3)
    squares = [(values - base) ** 2 + unit**2 for values in (engine, rounded)]
    phases = [slice(*phase) for phase in pairwise(edges)]

    def departure(quantity: str | None, columns: slice, of: Sequence[slice]) -> Departure:
        """Test the logarithms of a quantity's ratios, one a phase; or of all that add up in one."""
        of_phases = [
            np.stack([means(each[:, p, columns].reshape(len(each), -1), 1) for p in of], 1)
            for each in squares
        ]
        logs = np.log(of_phases[0] / of_phases[1]) / 2
        of_seeds = means(np.clip(logs, -math.log(_CAP), math.log(_CAP)), 1)
        mean, error = _mean_and_error(of_seeds)
        first, end = of[0].start, of[-1].stop
        sizes = (float(means(each[:, first:end, columns].ravel(), 0)) ** 0.5 for each in squares)
        ratio = math.exp(means(logs, 1).mean())
        p = _above(mean, math.log(TOLERANCE), error, len(base) - 1)
        return Departure(precision, quantity, first, end, *sizes, ratio, p)

    each = [departure(name, slice(i, i + 1), phases) for i, name in enumerate(quantities)]
    return each + [departure(None, slice(None), [phase]) for phase in phases]


def _late(
    reference: Values, engine: Values, quantities: Sequence[str], windows: list[tuple[int, int]]
) -> tuple[Difference, ...]:
    finite = (np.isfinite(reference) & np.isfinite(engine)).all(axis=2, keepdims=True)
    reference, engine = (np.where(finite, values, np.nan) for values in (reference, engine))
    # The strictest that Holm's method asks of a family's least p-value.
    level = ALPHA / _FAMILIES / (len(quantities) * len(windows))
    return _adjusted(
        [
            _difference(
                quantity,
                window,
                means(reference[:, slice(*window), i], 1),
                means(engine[:, slice(*window), i], 1),
                level,
            )
            for i, quantity in enumerate(quantities)
            for window in windows
        ]
    )


def _difference(
    quantity: str, window: tuple[int, int], reference: Values, engine: Values, level: float
) -> Difference:
    """Test the seeds' means, (seeds,); p is not adjusted yet."""
    from scipy.stats import t

    freedom = len(reference) - 1
    mean, error = _mean_and_error(engine - reference)
    half = float(t.ppf(0.975, freedom)) * error
    return Difference(
        quantity,
        *window,
        float(reference.mean()),
        float(engine.mean()),
        mean,
        mean - half,
        mean + half,
        float(reference.std(ddof=1)),
        NEGLIGIBLE + float(t.isf(level, freedom)) * error,
        sum(_above(abs(mean), limit, error, freedom) for limit in (NEGLIGIBLE, -NEGLIGIBLE)),
    )


def means(values: Values, axis: int) -> Values:
    """Average over an axis what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        found: Values = np.where(finite, values, 0.0).sum(axis) / finite.sum(axis)
    return found


def _mean_and_error(values: Values) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5


def _above(found: float, limit: float, error: float, freedom: int) -> float:
    """Return the p-value of a t test of whether a mean with a standard error exceeds a limit."""
    from scipy.stats import t

    return float(t.sf((found - limit) / error, freedom)) if error else float(found <= limit)


def _adjusted(family: Sequence[Test]) -> tuple[Test, ...]:
    """Adjust the p-values of a family of tests."""
    adjusted = holm([each.p for each in family])
    return tuple(replace(each, p=p) for each, p in zip(family, adjusted, strict=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's method, in the order given; NaN stays and is no test."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return [float(each) for each in adjusted]
