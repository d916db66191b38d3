"""Squares, ellipses and hearts of any size, turn and place, 64x64 white on black.

The factors are those of dSprites (Matthey et al. 2017); drawn evenly from ranges, where dSprites
steps through a grid, and antialiased, where dSprites is black and white. A square is the same
after a quarter turn and an ellipse after half a turn: no code can follow their rotation all round.
"""

from typing import Final

import numpy as np

from fastinfogan.data.image_set import ImageShape
from fastinfogan.data.synthetic.scene import Exact, Factor, Numbers, Pixels, Scene, turn, wide

_SIDE: Final = 64
_SHAPE: Final = ImageShape(_SIDE, _SIDE, 1)
_TOGETHER: Final = 8  # sprites at once: their maps stay in a core's cache
_MARGIN: Final = 15.5  # pixels between an image's edge and the outermost centre

SHAPES: Final = ("square", "ellipse", "heart")
# In pixels, at scale 1.
_SQUARE: Final = 9.5  # half of its side
_LONG, _SHORT = 13.0, 6.5  # the ellipse's radii
_HEART: Final = 8.5  # half of the side of the square between its two discs

_FACTORS = (
    Factor("shape", 0, len(SHAPES), classes=True),
    Factor("scale", 0.5, 1.0),
    Factor("rotation", 0.0, 360.0, period=360.0),
    Factor("x", 0.0, 1.0),
    Factor("y", 0.0, 1.0),
)


def render(numbers: Numbers) -> Pixels:
    """Render sprites: uint8 (n, 64, 64, 1)."""
    images = np.empty((len(numbers), *_SHAPE), np.uint8)
    shapes = _FACTORS[0].of(numbers[:, 0]).astype(np.int64)
    for shape, outside in enumerate((_outside_square, _outside_ellipse, _outside_heart)):
        alike = np.flatnonzero(shapes == shape)
        for start in range(0, len(alike), _TOGETHER):
            some = alike[start : start + _TOGETHER]
            scale, degrees, x, y = (f.of(numbers[some, i]) for i, f in enumerate(_FACTORS) if i > 0)
            distance = outside(*_along(x, y, degrees + (45.0 if shape == 2 else 0.0)), scale)
            # A straight edge covers half of a pixel through whose centre it goes.
            covered = np.clip(np.float32(0.5) - distance, 0, 1)
            images[some] = (covered * np.float32(255) + np.float32(0.5)).astype(np.uint8)[..., None]
    return images


def _along(x: Exact, y: Exact, degrees: Exact) -> tuple[Numbers, Numbers]:
    """Where pixels lie in a sprite's own frame, in pixels: two float32 (n, 64, 64)."""
    reach = _SIDE - 2 * _MARGIN
    places = np.arange(_SIDE, dtype=np.float32) + np.float32(0.5)
    right = places[None, None, :] - wide(_MARGIN + x * reach)
    up = wide(_SIDE - _MARGIN - y * reach) - places[None, :, None]
    cosine, sine = (wide(part) for part in turn(degrees))
    return cosine * right + sine * up, cosine * up - sine * right


def _outside_square(a: Numbers, b: Numbers, scale: Exact) -> Numbers:
    distance: Numbers = np.maximum(np.abs(a), np.abs(b)) - wide(_SQUARE * scale)
    return distance


def _outside_ellipse(a: Numbers, b: Numbers, scale: Exact) -> Numbers:
    long, short = wide(1 / (_LONG * scale)), wide(1 / (_SHORT * scale))
    p, q = a * long, b * short
    norm = np.sqrt(p * p + q * q)
    p, q = p * long, q * short
    # To first order, the distance is what the form is off by, over its slope.
    distance: Numbers = norm * (norm - 1) / np.sqrt(p * p + q * q + np.float32(1e-12))
    return distance


def _outside_heart(a: Numbers, b: Numbers, scale: Exact) -> Numbers:
    """A square on its corner, with a disc on each of its upper sides."""
    half = wide(_HEART * scale)
    a, b = a + half * np.float32(0.3), b + half * np.float32(0.3)
    distance: Numbers = np.maximum(np.abs(a), np.abs(b))
    right, left = a - half, b - half
    distance = np.minimum(distance, np.sqrt(right * right + b * b))
    distance = np.minimum(distance, np.sqrt(left * left + a * a))
    return distance - half


SPRITES = Scene("sprites", _SHAPE, _FACTORS, len(_FACTORS), "shape", render, 1024)
