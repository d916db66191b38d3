"""What the three sets share: how an image's numbers become factors, turns and antialiased pixels.

An image is a pure function of its row of numbers, and every operation on the way is one that rounds
alike everywhere and in any company: sums, products, quotients, square roots, comparisons. So a set
is the same to the last bit on every machine, whatever is rendered beside an image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.image_set import Factors, ImageShape

Numbers = NDArray[np.float32]
Exact = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Number = Exact | float


@dataclass(frozen=True)
class Factor:
    """One thing that varies, drawn evenly.

    Attributes:
        name: as users read it.
        low: the least value.
        high: the largest; a factor with classes has 0 and their number.
        classes: whether its values are the numbers of classes.
        period: after how much it comes round again, if it does.
    """

    name: str
    low: float
    high: float
    classes: bool = False
    period: float | None = None

    def of(self, numbers: Numbers) -> Exact:
        """Turn numbers in [-1, 1] into values, float64 of the same shape."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        values: Exact = numbers.astype(np.float64) * half + middle
        return np.minimum(np.floor(values), self.high - 1) if self.classes else values


@dataclass(frozen=True)
class Scene:
    """One set of images before any is rendered.

    Attributes:
        name: faces3d, chairs3d or sprites.
        shape: of an image.
        factors: what is known of an image; the first columns of its row of numbers.
        columns: how many numbers in (-1, 1) make an image.
        label: the factor whose class is the image's label, if any.
        render: from numbers, float32 (n, columns), to images, uint8 (n, height, width, 1).
        chunk: how many images a thread takes at a time.
    """

    name: str
    shape: ImageShape
    factors: tuple[Factor, ...]
    columns: int
    label: str | None
    render: Callable[[Numbers], Pixels]
    chunk: int

    def known(self, numbers: Numbers) -> Factors:
        """The factors of images, float32 (n, factors)."""
        values = [factor.of(numbers[:, i]) for i, factor in enumerate(self.factors)]
        return Factors(
            tuple(factor.name for factor in self.factors),
            np.stack(values, axis=1).astype(np.float32),
            tuple(int(factor.high) if factor.classes else None for factor in self.factors),
            tuple(factor.period for factor in self.factors),
        )

    def labels(self, numbers: Numbers) -> NDArray[np.int64] | None:
        """The labels of images, int64 (n,), or None where there is no natural class."""
        for i, factor in enumerate(self.factors):
            if factor.name == self.label:
                return factor.of(numbers[:, i]).astype(np.int64)
        return None


def between(numbers: Numbers, low: float, high: float) -> Exact:
    """Turn numbers in [-1, 1] into float64 in [low, high]."""
    return Factor("", low, high).of(numbers)


# The series of sin(x) / x and cos(x) in x * x, highest power first.
_SINE = (-1 / 1307674368000, 1 / 6227020800, -1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6)
_COSINE = (-1 / 87178291200, 1 / 479001600, -1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -1 / 2)


def turn(degrees: Exact) -> tuple[Exact, Exact]:
    """Cosine and sine of angles to 1e-12; a library's own would not round alike everywhere."""
    quarters = np.floor(degrees / 90 + 0.5)
    x = (degrees - quarters * 90) * (np.pi / 180)
    square = x * x
    sine, cosine = np.zeros_like(x), np.zeros_like(x)
    for s, c in zip(_SINE, _COSINE, strict=True):
        sine, cosine = (sine + s) * square, (cosine + c) * square
    sine, cosine = x * (sine + 1), cosine + 1
    quarters = quarters - 4 * np.floor(quarters / 4)
    odd = (quarters == 1) | (quarters == 3)
    first, second = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    return (
        np.where((quarters == 1) | (quarters == 2), -first, first),
        np.where(quarters >= 2, -second, second),
    )


def averaged(samples: Numbers, across: int) -> Pixels:
    """Average squares of across * across samples of brightness in [0, 1] to pixels.

    Args:
        samples: float32 (n, height * across, width * across).
        across: samples along a pixel's side.

    Returns:
        uint8 (n, height, width, 1).
    """
    total = np.zeros_like(samples[:, ::across, ::across])
    for down in range(across):
        for right in range(across):  # one by one: the order of a library's sum is its own
            total += samples[:, down::across, right::across]
    scaled = total * np.float32(255 / across**2) + np.float32(0.5)
    return scaled.astype(np.uint8)[..., None]


def wide(values: Exact) -> Numbers:
    """A number of each image, float64 (n,), as float32 (n, 1, 1): to be used on its samples."""
    return values.astype(np.float32)[:, None, None]


def reached(places: Numbers, middle: Exact, half: Exact) -> slice:
    """Which of some ascending places lie within any of the reaches, and one more on both sides."""
    first = int(np.searchsorted(places, (middle - half).min()))
    last = int(np.searchsorted(places, (middle + half).max()))
    return slice(max(first - 1, 0), last + 1)
