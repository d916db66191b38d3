"""Images that stand in for the digits where the digits cannot be had: strokes of ten classes.

As many, as large and about as bright as the digits, each glyph with a slant, a width, a thickness
and a place of its own, so that there is something for every code to learn; the labels are known.
"""

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data import ImageSet
from fastinfogan_kernels import philox

NAME: Final = "made-up strokes of ten classes"
_SIDE: Final = 28
_SEED: Final = 28
_TOGETHER: Final = 250  # images at once

# Points in a box from (-1, -1), top left, to (1, 1), joined by one stroke.
_GLYPHS: Final[tuple[tuple[tuple[float, float], ...], ...]] = (
    ((0, -1), (0.7, -0.6), (0.7, 0.6), (0, 1), (-0.7, 0.6), (-0.7, -0.6), (0, -1)),
    ((-0.4, -0.6), (0, -1), (0, 1)),
    ((-0.7, -0.6), (0, -1), (0.7, -0.5), (-0.7, 1), (0.7, 1)),
    ((-0.6, -1), (0.6, -1), (0, -0.2), (0.7, 0.4), (0, 1), (-0.7, 0.7)),
    ((0.3, 1), (0.3, -1), (-0.7, 0.4), (0.8, 0.4)),
    ((0.6, -1), (-0.6, -1), (-0.6, -0.1), (0.5, 0), (0.6, 0.7), (-0.6, 1)),
    ((0.4, -1), (-0.6, 0.2), (-0.5, 0.9), (0.5, 0.9), (0.5, 0.1), (-0.5, 0.2)),
    ((-0.7, -1), (0.7, -1), (-0.2, 1)),
    ((0, 0), (0.6, -0.5), (0, -1), (-0.6, -0.5), (0, 0), (0.7, 0.5), (0, 1), (-0.7, 0.5), (0, 0)),
    ((0.5, -0.1), (-0.5, 0), (-0.5, -0.9), (0.5, -0.9), (0.5, -0.1), (0.3, 1)),
)
Exact = NDArray[np.float64]


def stand_in(per_class: int = 500) -> ImageSet:
    """Ten classes of so many images, sorted by class as the embedded digits are.

    Returns:
        uint8 (10 * per_class, 28, 28, 1), with labels.
    """
    count = len(_GLYPHS) * per_class
    drawn = philox.uniform(philox.words(_SEED, 0, 0, count, 6)).astype(np.float64)
    images = np.empty((count, _SIDE, _SIDE, 1), np.uint8)
    for glyph, points in enumerate(_GLYPHS):
        for first in range(0, per_class, _TOGETHER):
            rows = slice(glyph * per_class + first, glyph * per_class + first + _TOGETHER)
            rows = slice(rows.start, min(rows.stop, (glyph + 1) * per_class))
            images[rows, :, :, 0] = _draw(points, drawn[rows])
    labels = np.repeat(np.arange(len(_GLYPHS)), per_class).astype(np.int64)
    return ImageSet(NAME, images, labels)


def _draw(points: tuple[tuple[float, float], ...], drawn: Exact) -> NDArray[np.uint8]:
    """One glyph, once for each row of numbers from -1 to 1."""
    slant, width, thickness, turn, right, down = (each[:, None, None] for each in drawn.T)
    # Where a pixel lies in the glyph's own frame.
    places = np.arange(_SIDE) - (_SIDE - 1) / 2
    x, y = places[None, None, :] - right * 1.5, places[None, :, None] - down * 1.5
    angle = turn * 0.15
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    height, across = 9.0, 6.5 * (1 + 0.25 * width)
    x = x + slant * 0.35 * y
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf)
    for start, end in pairwise(points):
        ax, ay, bx, by = start[0] * across, start[1] * height, end[0] * across, end[1] * height
        dx, dy = bx - ax, by - ay
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * dx, y - ay - along * dy))
    covered = np.clip(1.35 + 0.5 * thickness + 0.5 - nearest, 0.0, 1.0)
    return (covered * 255 + 0.5).astype(np.uint8)
