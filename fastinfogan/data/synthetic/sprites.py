"""Squares, ellipses and hearts of any size, rotation and position, 64x64 white on black.

The factors are those of dSprites (Matthey et al. 2017), but drawn uniformly instead of from a grid,
and antialiased. A square is symmetric under a quarter turn and an ellipse under half a turn, so
their images do not determine the rotation.
"""

from typing import Final

import numpy as np

from fastinfogan.data.image_set import ImageShape
from fastinfogan.data.synthetic.scene import (
    Factor,
    Float32,
    Float64,
    Pixels,
    Scene,
    batches_by_group,
    cos_sin,
    per_image,
)

_SIDE: Final = 64
_SHAPE: Final = ImageShape(_SIDE, _SIDE, 1)
_TOGETHER: Final = 8  # sprites at once: their arrays fit into a core's cache
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


def render(numbers: Float32) -> Pixels:
    """Render sprites: uint8 (n, 64, 64, 1)."""
    images = np.empty((len(numbers), *_SHAPE), np.uint8)
    shapes = _FACTORS[0].of(numbers[:, 0]).astype(np.int64)
    for some in batches_by_group(shapes, numbers[:, 0], _TOGETHER):
        shape = int(shapes[some[0]])
        scale, degrees, x, y = (f.of(numbers[some, i]) for i, f in enumerate(_FACTORS) if i > 0)
        a, b = _local_coordinates(x, y, degrees + (45.0 if shape == 2 else 0.0))
        distance = (_square_distance, _ellipse_distance, _heart_distance)[shape](a, b, scale)
        # A straight edge through a pixel's centre covers half of it.
        covered = np.clip(np.float32(0.5) - distance, 0, 1)
        images[some] = (covered * np.float32(255) + np.float32(0.5)).astype(np.uint8)[..., None]
    return images


def _local_coordinates(x: Float64, y: Float64, degrees: Float64) -> tuple[Float32, Float32]:
    """Return pixel coordinates in the frames of the sprites, pixels: two float32 (n, 64, 64)."""
    extent = _SIDE - 2 * _MARGIN
    positions = np.arange(_SIDE, dtype=np.float32) + np.float32(0.5)
    right = positions[None, None, :] - per_image(_MARGIN + x * extent)
    up = per_image(_SIDE - _MARGIN - y * extent) - positions[None, :, None]
    cosine, sine = (per_image(part) for part in cos_sin(degrees))
    return cosine * right + sine * up, cosine * up - sine * right


def _square_distance(a: Float32, b: Float32, scale: Float64) -> Float32:
    distance: Float32 = np.maximum(np.abs(a), np.abs(b)) - per_image(_SQUARE * scale)
    return distance


def _ellipse_distance(a: Float32, b: Float32, scale: Float64) -> Float32:
    long, short = per_image(1 / (_LONG * scale)), per_image(1 / (_SHORT * scale))
    p, q = a * long, b * short
    norm = np.sqrt(p * p + q * q)
    p, q = p * long, q * short
    # To first order, the distance is the value of the quadratic form over its gradient.
    distance: Float32 = norm * (norm - 1) / np.sqrt(p * p + q * q + np.float32(1e-12))
    return distance


def _heart_distance(a: Float32, b: Float32, scale: Float64) -> Float32:
    """Measure the distance to a square on its corner, with a disc on each of its upper sides."""
    half = per_image(_HEART * scale)
    a, b = a + half * np.float32(0.3), b + half * np.float32(0.3)
    distance: Float32 = np.maximum(np.abs(a), np.abs(b))
    right, left = a - half, b - half
    distance = np.minimum(distance, np.sqrt(right * right + b * b))
    distance = np.minimum(distance, np.sqrt(left * left + a * a))
    return distance - half


SPRITES = Scene("sprites", _SHAPE, _FACTORS, len(_FACTORS), "shape", render, 1024)
