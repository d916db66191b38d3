"""Exponents: a cost that is c * size^e is a straight line of slope e in logarithms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Exponent:
    """Of a cost in a size.

    Attributes:
        overall: slope of the line through all points.
        margin: half of its 95 % confidence interval; what is no power law shows here.
        last: slope between the two largest sizes, where what is constant matters least.
    """

    overall: float
    margin: float
    last: float


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> Exponent:
    """Fit an exponent, by least squares in logarithms.

    Args:
        sizes: rising, three or more.
        costs: at each of them, positive.
    """
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    line = stats.linregress(x, y)
    margin = float(stats.t.ppf(0.975, len(x) - 2) * line.stderr)
    return Exponent(float(line.slope), margin, (y[-1] - y[-2]) / (x[-1] - x[-2]))
