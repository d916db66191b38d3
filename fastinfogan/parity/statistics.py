"""Whether two sets of trajectories agree, from nothing but their numbers.

Both sides start from the same weights and see the same images, codes and noise, so at first they
differ by rounding alone. Adam's first updates are the learning rate times a gradient's sign, which
rounding decides where a gradient is small; training then multiplies what differs, and after some
tens of iterations two correct programs are as far apart as two runs with different noise. So there
are two questions.

Early, iteration by iteration: does the engine depart from the reference by more than rounding
does? The yardstick is the reference itself, rounded as PyTorch has it in the engine's precision
(for fp32: the reference in fp64). Per quantity and phase the mean square of engine - reference is
set against that of rounded - reference, an F test of whether the true ratio of the roots is above
`TOLERANCE`. In fp32 this sees errors of a gradient of far below a percent; in bf16 and fp16, whose
rounding moves each gradient by as much, only larger ones.

Late, in distribution: per quantity, the means over the whole run and over each of ten windows,
engine less reference, paired by seed: t tests of whether the true difference is above `NO_MATTER`,
which no two precisions need to keep to and no reader of a curve sees. The seed is what is
independent, so n seeds leave n - 1 degrees of freedom, however long the run. Five seeds are few:
a window's difference is only found if it is several times its standard error, and `seen_from` says
how large that is. So that no difference was found is one statement; that there is none above
`MARGIN` is another one, made only where the whole 95 % confidence interval lies within it. Neither
says anything of what is not recorded: the images, or the weights.

Each of the three families of tests (early, whole, windows) has a third of `ALPHA` and is corrected
by Holm's method, so that a correct engine is told to differ in at most `ALPHA` of all reports.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastinfogan.errors import InputError

ALPHA: Final = 0.05
TOLERANCE: Final = 2.0
"""How many times PyTorch's own rounding errors the engine may have, early."""
NO_MATTER: Final = 0.01
"""Nats; a mean difference up to this is none."""
MARGIN: Final = 0.05
"""Nats; what an equivalence is stated within: of a code of ten classes' 2.30 about 2 %."""
WINDOWS: Final = 10
EARLY: Final = 16
"""Iterations before training has multiplied rounding by too much, in phases that double."""
_FAMILIES = 3

Values = NDArray[np.float64]
"""Trajectories: (seeds, iterations, quantities); NaN where an iteration was skipped."""


@dataclass(frozen=True)
class Departure:
    """How far the engine departs from the reference in an early phase.

    Attributes:
        quantity: which.
        first: iteration, counted from 0.
        end: the iteration behind the last one.
        engine: root mean square of engine - reference, over seeds and iterations.
        rounding: the same of the rounded reference, with one rounding of what is recorded.
        p: adjusted p-value of the ratio's being above `TOLERANCE`.
    """

    quantity: str
    first: int
    end: int
    engine: float
    rounding: float
    p: float

    @property
    def ratio(self) -> float:
        """Engine over rounding."""
        return self.engine / self.rounding


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
        seeds_differ: standard deviation of the reference from seed to seed.
        seen_from: a difference of this size is found, whatever the other tests say.
        p: adjusted p-value of its being above `NO_MATTER`, NaN where nothing was finite.
    """

    quantity: str
    first: int
    end: int
    reference: float
    engine: float
    difference: float
    low: float
    high: float
    seeds_differ: float
    seen_from: float
    p: float

    @property
    def within(self) -> bool:
        """Whether the confidence interval lies within `MARGIN`."""
        return max(-self.low, self.high) < MARGIN


@dataclass(frozen=True)
class Judgement:
    """What was found.

    Attributes:
        early: by quantity, then by phase.
        whole: by quantity, over the whole run.
        windows: by quantity, then by window.
        skipped: iterations that were not finite, by side.
        reasons: why the sides differ, each in a few words; none if they agree.
    """

    early: tuple[Departure, ...]
    whole: tuple[Difference, ...]
    windows: tuple[Difference, ...]
    skipped: dict[str, int]
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """That they agree, or how they differ."""
        return f"differ: {'; '.join(self.reasons)}" if self.reasons else "agree"


def judge(
    reference: Values,
    engine: Values,
    rounded: Values,
    quantities: Sequence[str],
    may_skip: float = 0.0,
) -> Judgement:
    """Compare trajectories that are paired by seed.

    Args:
        reference: (seeds, iterations, quantities).
        engine: the same.
        rounded: the first iterations of the same, `EARLY` or fewer.
        quantities: their names.
        may_skip: the share of the engine's iterations that may be skipped as not finite.

    Raises:
        InputError: the shapes do not fit, there are fewer than two seeds, or fewer iterations than
            windows.
    """
    if reference.ndim != 3 or reference.shape != engine.shape:
        raise InputError(f"trajectories of shapes {reference.shape} and {engine.shape}")
    seeds, iterations, count = reference.shape
    if rounded.ndim != 3 or rounded.shape[::2] != (seeds, count) or count != len(quantities):
        raise InputError(f"trajectories of shapes {reference.shape} and {rounded.shape}")
    if seeds < 2:
        raise InputError(f"{seeds} seeds; two or more are needed to tell a difference from chance")
    if iterations < WINDOWS:
        raise InputError(f"{iterations} iterations; {WINDOWS} or more are needed, one a window")
    reasons = []
    skipped = {}
    for name, side, allowed in (("reference", reference, 0.0), ("engine", engine, may_skip)):
        skipped[name] = int((~np.isfinite(side)).any(axis=2).sum())
        if skipped[name] > allowed * seeds * iterations:
            reasons.append(f"{skipped[name]} iterations of the {name} were not finite")
    early = _early(reference, engine, rounded, quantities)
    edges = np.linspace(0, iterations, WINDOWS + 1).astype(int).tolist()
    each = list(pairwise(edges))
    whole = _late(reference, engine, quantities, [(0, iterations)])
    windows = _late(reference, engine, quantities, each)
    level = ALPHA / _FAMILIES
    reasons += [
        f"{d.quantity} departs {d.ratio:.3g} times as far as by rounding, {_when(d.first, d.end)}"
        for d in early
        if d.p < level
    ]
    reasons += [
        f"{d.quantity} by {d.difference:+.3g} nats, {_when(d.first, d.end)}"
        for d in (*whole, *windows)
        if d.p < level
    ]
    return Judgement(early, whole, windows, skipped, tuple(reasons))


def _when(first: int, end: int) -> str:
    return f"iteration {end}" if end == first + 1 else f"iterations {first + 1} to {end}"


def _early(
    reference: Values, engine: Values, rounded: Values, quantities: Sequence[str]
) -> tuple[Departure, ...]:
    from scipy.stats import f

    length = min(rounded.shape[1], reference.shape[1], EARLY)
    edges = [0, *(1 << k for k in range(length.bit_length()) if 1 << k < length), length]
    found = []
    for i, quantity in enumerate(quantities):
        for first, end in pairwise(edges):
            part = np.s_[:, first:end, i]
            base, ours, theirs = reference[part], engine[part], rounded[part]
            there = np.isfinite(base) & np.isfinite(ours) & np.isfinite(theirs)
            base, ours, theirs = base[there], ours[there], theirs[there]
            if not base.size:
                continue  # told as not finite
            unit = np.finfo(np.float32).eps * base
            ours2 = float(np.mean((ours - base) ** 2))
            theirs2 = float(np.mean((theirs - base) ** 2 + unit**2)) or np.finfo(float).tiny
            p = float(f.sf(ours2 / theirs2 / TOLERANCE**2, base.size, base.size))
            found.append(Departure(quantity, first, end, ours2**0.5, theirs2**0.5, p))
    return tuple(replace(d, p=p) for d, p in zip(found, holm([d.p for d in found]), strict=True))


def _late(
    reference: Values, engine: Values, quantities: Sequence[str], windows: list[tuple[int, int]]
) -> tuple[Difference, ...]:
    there = np.asarray((np.isfinite(reference) & np.isfinite(engine)).all(axis=2))
    # The strictest that Holm's method asks of a family's least p-value.
    level = ALPHA / _FAMILIES / (len(quantities) * len(windows))
    found = [
        _difference(
            quantity,
            window,
            _means(reference[:, slice(*window), i], there[:, slice(*window)]),
            _means(engine[:, slice(*window), i], there[:, slice(*window)]),
            level,
        )
        for i, quantity in enumerate(quantities)
        for window in windows
    ]
    adjusted = holm([d.p for d in found])
    return tuple(replace(d, p=p) for d, p in zip(found, adjusted, strict=True))


def _means(values: Values, there: NDArray[np.bool_]) -> Values:
    """Of each seed, over the iterations that are there; NaN where none is: (seeds,)."""
    with np.errstate(invalid="ignore"):
        means: Values = np.where(there, values, 0.0).sum(axis=1) / there.sum(axis=1)
    return means


def _difference(
    quantity: str, window: tuple[int, int], reference: Values, engine: Values, level: float
) -> Difference:
    """Of the seeds' means, (seeds,); p is not adjusted yet."""
    from scipy.stats import t

    seeds = len(reference)
    paired = engine - reference
    mean = float(paired.mean())
    error = float(paired.std(ddof=1)) / seeds**0.5
    half = float(t.ppf(0.975, seeds - 1)) * error
    if error == 0.0:
        p = float(abs(mean) <= NO_MATTER)
    else:
        tails = ((abs(mean) - NO_MATTER) / error, (abs(mean) + NO_MATTER) / error)
        p = float(sum(t.sf(tails, seeds - 1)))
    return Difference(
        quantity,
        *window,
        float(reference.mean()),
        float(engine.mean()),
        mean,
        mean - half,
        mean + half,
        float(reference.std(ddof=1)),
        NO_MATTER + float(t.isf(level, seeds - 1)) * error,
        p,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; NaN stays and is no test."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return [float(each) for each in adjusted]
