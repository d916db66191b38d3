"""What the rendered sets share: factors, rotations and antialiasing.

An image is a pure function of its row of numbers, computed with correctly rounded operations only:
sums, products, quotients, square roots, comparisons. A set is therefore bit-identical on every
machine, whatever images are rendered together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.image_set import Factors, ImageShape

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Index = NDArray[np.int64]
Scalar = Float64 | float
Vector = tuple[Float64, ...]  # right or x, up or y, near or z


@dataclass(frozen=True)
class Factor:
    """A factor of variation, uniformly distributed.

    Attributes:
        name: of the factor.
        low: smallest value; 0 for classes.
        high: largest value; the number of classes.
        classes: whether its values are class indices.
        period: of its values, if it is periodic.
    """

    name: str
    low: float
    high: float
    classes: bool = False
    period: float | None = None

    def of(self, numbers: Float32) -> Float64:
        """Map numbers in [-1, 1] to values, float64 of the same shape."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        values: Float64 = numbers.astype(np.float64) * half + middle
        return np.minimum(np.floor(values), self.high - 1) if self.classes else values


@dataclass(frozen=True)
class Scene:
    """How to render a set of images.

    Attributes:
        name: faces3d, chairs3d or sprites.
        shape: of an image.
        factors: given by the first columns of an image's row of numbers.
        columns: numbers in (-1, 1) per image.
        label: name of the factor that is the image's label, if any.
        render: maps float32 (n, columns) to uint8 (n, height, width, 1).
        chunk: images that a thread renders at a time.
    """

    name: str
    shape: ImageShape
    factors: tuple[Factor, ...]
    columns: int
    label: str | None
    render: Callable[[Float32], Pixels]
    chunk: int

    def factors_of(self, numbers: Float32) -> Factors:
        """Return the factors of images, given their numbers."""
        values = [factor.of(numbers[:, i]) for i, factor in enumerate(self.factors)]
        return Factors(
            tuple(factor.name for factor in self.factors),
            np.stack(values, axis=1).astype(np.float32),
            tuple(int(factor.high) if factor.classes else None for factor in self.factors),
            tuple(factor.period for factor in self.factors),
        )

    def labels(self, numbers: Float32) -> NDArray[np.int64] | None:
        """Return the labels of images, int64 (n,), if there are any."""
        for i, factor in enumerate(self.factors):
            if factor.name == self.label:
                return factor.of(numbers[:, i]).astype(np.int64)
        return None


def between(numbers: Float32, low: float, high: float) -> Float64:
    """Map numbers in [-1, 1] to float64 in [low, high]."""
    return Factor("", low, high).of(numbers)


# Taylor series of sin(x) / x and cos(x) in x * x, highest power first.
_SINE = (-1 / 1307674368000, 1 / 6227020800, -1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6)
_COSINE = (-1 / 87178291200, 1 / 479001600, -1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -1 / 2)


def cos_sin(degrees: Float64) -> tuple[Float64, Float64]:
    """Return cosine and sine to 1e-12; a math library's would differ between machines."""
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


class Camera:
    """Orthographic views, from an azimuth and an elevation each: degrees, float64 (n,)."""

    def __init__(self, azimuth: Float64, elevation: Float64) -> None:
        (ca, sa), (ce, se) = cos_sin(azimuth), cos_sin(elevation)
        zero = np.zeros(len(azimuth))
        self._rows = ((ca, zero, sa), (se * sa, ce, -se * ca), (-ce * sa, se, ce * ca))

    def __call__(self, vector: Vector) -> Vector:
        """Rotate vectors from the object's coordinates to the camera's."""
        x, y, z = vector
        return tuple(row[0] * x + row[1] * y + row[2] * z for row in self._rows)


def batches_by_group(groups: NDArray[np.int64], order: Float32, size: int) -> Iterator[Index]:
    """Yield the rows to render together: `size` at most, of one group, sorted by `order`."""
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        members = members[np.argsort(order[members], kind="stable")]
        for start in range(0, len(members), size):
            yield members[start : start + size]


def downsample(samples: Float32, across: int) -> Pixels:
    """Average squares of across * across brightness samples in [0, 1] to pixels.

    Args:
        samples: float32 (n, height * across, width * across).
        across: samples along a pixel's side.

    Returns:
        uint8 (n, height, width, 1).
    """
    total = np.zeros_like(samples[:, ::across, ::across])
    for down in range(across):
        for right in range(across):  # a library's sum has no fixed order
            total += samples[:, down::across, right::across]
    scaled = total * np.float32(255 / across**2) + np.float32(0.5)
    return scaled.astype(np.uint8)[..., None]


def per_image(values: Float64) -> Float32:
    """Broadcast a number of each image, float64 (n,), over its samples: float32 (n, 1, 1)."""
    return values.astype(np.float32)[:, None, None]


def covered(positions: Float32, middle: Float64, half: Float64) -> slice:
    """Return the slice of ascending `positions` within any of the intervals, widened by one."""
    first = int(np.searchsorted(positions, (middle - half).min()))
    last = int(np.searchsorted(positions, (middle + half).max()))
    return slice(max(first - 1, 0), last + 1)
