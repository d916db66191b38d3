"""Rotating chairs, 64x64 grey on white: eight types on four kinds of legs.

A chair consists of boxes and cylinders, each a linear transform of the unit cube or cylinder. The
projection is orthographic, so the depths of a part's planes are linear in the pixel; the nearest
part is visible. The set stands in for the rendered chairs of Aubry et al. 2014, on which the paper
trains and which must be downloaded.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from fastinfogan.data.image_set import ImageShape
from fastinfogan.data.synthetic.scene import (
    Camera,
    Factor,
    Float32,
    Float64,
    Pixels,
    Scalar,
    Scene,
    Vector,
    batches_by_group,
    between,
    covered,
    downsample,
    per_image,
)

_SIDE: Final = 64
_SHAPE: Final = ImageShape(_SIDE, _SIDE, 1)
_SAMPLES: Final = 3  # samples along a pixel's side
_BATCH: Final = 32  # chairs at once: their arrays fit into a core's cache
_VIEW: Final = 0.66  # half of the view, metres
_MIDDLE: Final = 0.49  # height in the middle of the image, metres
_CAMERA_HEIGHT: Final = 20.0  # degrees
_LIGHT: Final = (-0.43, 0.75, 0.5)  # direction to the light, in camera coordinates
_AMBIENT, _DIRECT = 0.34, 0.72
_SEAT: Final = 0.45  # height, metres

TYPES: Final = ("panel", "ladder", "spindle", "armchair", "club", "round", "wing", "cross")
LEGS: Final = ("straight", "splayed", "sled", "pedestal")

_FACTORS = (
    Factor("type", 0, len(TYPES), classes=True),
    Factor("rotation", 0.0, 360.0, period=360.0),
    Factor("width", 0.8, 1.25),
    Factor("legs", 0, len(LEGS), classes=True),
    Factor("back height", 0.36, 0.62),
)
_STYLE = ("depth", "thickness", "tilt", "wood", "cloth", "seat thickness")


@dataclass(frozen=True)
class _Part:
    """A box or cylinder in chair coordinates, x to the left, y up, z to the front: all (n,).

    Attributes:
        centre: of the part.
        edges: from the centre to the middle of three faces; the second is a cylinder's axis.
        tone: brightness of its surface.
        cylinder: whether it is a cylinder.
    """

    centre: Vector
    edges: tuple[Vector, ...]
    tone: Float64
    cylinder: bool = False


class _DepthBuffer:
    """Depth and tone of the nearest part at each sample, of chairs rotated by degrees (n,)."""

    def __init__(self, rotation: Float64) -> None:
        n, side = len(rotation), _SIDE * _SAMPLES
        self._to_camera = Camera(rotation, np.full(n, _CAMERA_HEIGHT))
        self._depth = np.full((n, side, side), np.float32(-9))
        self.tone = np.ones((n, side, side), np.float32)
        step = 2 * _VIEW / side
        self._x = ((np.arange(side) + 0.5) * step - _VIEW).astype(np.float32)
        self._down = (self._x - np.float32(_MIDDLE)).astype(np.float32)  # minus the height

    def add(self, part: _Part) -> None:
        """Draw a part where it is nearer than the others."""
        centre = self._to_camera(part.centre)
        edges = [self._to_camera(edge) for edge in part.edges]
        # Rows of the inverse of the edges, which map the part to the unit cube.
        crosses = [_cross(edges[(i + 1) % 3], edges[(i + 2) % 3]) for i in range(3)]
        volume = _dot(edges[0], crosses[0])
        inverse = [tuple(c / volume for c in cross) for cross in crosses]
        extent = [
            np.abs(edges[0][axis]) + np.abs(edges[1][axis]) + np.abs(edges[2][axis])
            for axis in range(2)
        ]
        rows = covered(self._down, -centre[1], extent[1])
        columns = covered(self._x, centre[0], extent[0])
        u = self._x[None, None, columns] - per_image(centre[0])
        v = -self._down[None, rows, None] - per_image(centre[1])
        brightness = [part.tone * _brightness(row) for row in inverse]
        if part.cylinder:
            near, far, tone = self._cylinder_depths(inverse, part.tone, u, v)
            planes = [1]
        else:
            near, tone = _entry_depth(inverse[0], u, v), per_image(brightness[0])
            far = near - _thickness(inverse[0])
            planes = [1, 2]
        for i in planes:
            front = _entry_depth(inverse[i], u, v)
            tone = np.where(front < near, per_image(brightness[i]), tone)
            near = np.minimum(near, front)
            far = np.maximum(far, front - _thickness(inverse[i]))
        depth = self._depth[:, rows, columns]
        hits = near > far
        near = near + per_image(centre[2])
        wins = hits & (near > depth)
        np.copyto(depth, near, where=wins)
        np.copyto(self.tone[:, rows, columns], tone, where=wins)

    def _cylinder_depths(
        self, inverse: list[Vector], tone: Float64, u: Float32, v: Float32
    ) -> tuple[Float32, Float32, Float32]:
        """Return where a ray enters and leaves an infinite cylinder, and its brightness there."""
        first, second = (
            (per_image(row[0]) * u + per_image(row[1]) * v, per_image(row[2]))
            for row in (inverse[0], inverse[2])
        )
        square = first[1] * first[1] + second[1] * second[1]
        linear = first[0] * first[1] + second[0] * second[1]
        constant = first[0] * first[0] + second[0] * second[0] - 1
        discriminant = linear * linear - square * constant
        root = np.sqrt(np.maximum(discriminant, 0))
        near = np.where(discriminant > 0, (root - linear) / square, np.float32(-9))
        far = np.where(discriminant > 0, (-root - linear) / square, np.float32(9))
        normal = [
            (first[0] + first[1] * near) * per_image(inverse[0][axis])
            + (second[0] + second[1] * near) * per_image(inverse[2][axis])
            for axis in range(3)
        ]
        length = np.sqrt(sum(each * each for each in normal)) + np.float32(1e-6)
        facing = sum(np.float32(_LIGHT[axis]) * normal[axis] for axis in range(3)) / length
        brightness = np.float32(_AMBIENT) + np.float32(_DIRECT) * np.maximum(facing, 0)
        return near, far, np.minimum(per_image(tone) * brightness, 1)


def _dot(a: Vector, b: Vector) -> Float64:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vector, b: Vector) -> Vector:
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def _depth_slope(row: Vector) -> Float64:
    return np.where(np.abs(row[2]) < 1e-5, 1e-5, row[2])


def _entry_depth(row: Vector, u: Float32, v: Float32) -> Float32:
    """Return the depth at which rays enter between two faces."""
    slope = _depth_slope(row)
    along = per_image(-row[0] / slope) * u + per_image(1 / np.abs(slope))
    return along + per_image(-row[1] / slope) * v


def _thickness(row: Vector) -> Float32:
    return per_image(2 / np.abs(_depth_slope(row)))


def _brightness(row: Vector) -> Float64:
    """Return the brightness of the visible one of the two faces normal to a row."""
    facing = row[0] * _LIGHT[0] + row[1] * _LIGHT[1] + row[2] * _LIGHT[2]
    facing = np.where(row[2] < 0, -facing, facing) / np.sqrt(_dot(row, row))
    return np.minimum(_AMBIENT + _DIRECT * np.maximum(facing, 0), 1.0)


class _ChairBuilder:
    """Builder of chairs of one type on one kind of legs, given by float32 (n, columns)."""

    def __init__(self, numbers: Float32) -> None:
        kind, self.rotation, wide, legs, self.height = (
            f.of(numbers[:, i]) for i, f in enumerate(_FACTORS)
        )
        style = dict(zip(_STYLE, numbers[:, len(_FACTORS) :].T, strict=True))
        self.kind, self.legs = TYPES[int(kind[0])], LEGS[int(legs[0])]
        self.zero = np.zeros(len(numbers))
        self.half = 0.225 * wide
        self.deep = between(style["depth"], 0.2, 0.235)
        self.stick = between(style["thickness"], 0.016, 0.026)
        self.lean = between(style["tilt"], 0.06, 0.22)  # metres back per metre up
        self.wood = between(style["wood"], 0.22, 0.72)
        cloth = between(style["cloth"], 0.25, 0.9)
        self.cloth = cloth if self.kind in ("club", "wing", "panel", "armchair") else self.wood
        self.thin = between(style["seat thickness"], 0.018, 0.04)
        self.under = self.zero + 0.22 if self.kind == "club" else _SEAT - 2 * self.thin
        self.parts: list[_Part] = []

    def build(self) -> list[_Part]:
        """Return all parts."""
        getattr(self, f"_{self.kind}")()
        getattr(self, f"_on_{self.legs}")()
        return self.parts

    def block(
        self, x: Scalar, y: Scalar, z: Scalar, rx: Scalar, ry: Scalar, rz: Scalar,
        *, lean: Float64 | None = None, tone: Float64 | None = None, cylinder: bool = False,
    ) -> None:  # fmt: skip
        """Add a part with edges along the axes; its upright edge leans back by a slope."""
        zero = self.zero
        upright = (zero, zero + ry, zero if lean is None else -lean * ry)
        edges = ((zero + rx, zero, zero), upright, (zero, zero, zero + rz))
        centre = (zero + x, zero + y, zero + z)
        self.parts.append(_Part(centre, edges, self.wood if tone is None else tone, cylinder))

    def stick_between(self, start: Vector, end: Vector, thick: Float64) -> None:
        """Add a box from one point to a higher one."""
        zero = self.zero
        along, middle = (
            tuple((b + sign * a) / 2 for a, b in zip(start, end, strict=True)) for sign in (-1, 1)
        )
        edges = ((zero + thick, zero, zero), along, (zero, zero, zero + thick))
        self.parts.append(_Part(middle, edges, self.wood))

    def _back(self, y: Scalar, z: Scalar = 0.0) -> Float64:
        """Return the z of the leaning back at a height."""
        back: Float64 = -self.deep + 0.02 - self.lean * (y - _SEAT) + z
        return back

    def _plate(self) -> None:
        self.block(0, _SEAT - self.thin, 0, self.half, self.thin, self.deep, tone=self.cloth)

    def _posts(self) -> None:
        for side in (-1, 1):
            x = side * (self.half - self.stick)
            start = (x, self.zero + _SEAT - 0.02, self._back(self.zero + _SEAT - 0.02))
            top = self.zero + _SEAT + self.height
            self.stick_between(start, (x, top, self._back(top)), self.stick)

    def _rail(self, y: Scalar, half_height: Scalar, tone: Float64 | None = None) -> None:
        self.block(
            0, y, self._back(y), self.half, half_height, self.stick * 0.7,
            lean=self.lean, tone=tone,
        )  # fmt: skip

    def _panel(self) -> None:
        self._plate()
        gap = 0.04
        y = _SEAT + gap + (self.height - gap) / 2
        self._posts()
        self._rail(y, (self.height - gap) / 2, self.cloth)

    def _ladder(self) -> None:
        self._plate()
        self._posts()
        for share in (0.3, 0.62, 0.94):
            self._rail(_SEAT + self.height * share, 0.032)

    def _spindle(self) -> None:
        self._plate()
        self._posts()
        self._rail(_SEAT + self.height - 0.03, 0.035)
        for place in (-0.6, -0.3, 0.0, 0.3, 0.6):
            low, top = self.zero + _SEAT - 0.01, _SEAT + self.height - 0.05
            x = place * self.half
            start, end = (x, low, self._back(low)), (x, top, self._back(top))
            self.stick_between(start, end, self.zero + 0.009)

    def _armchair(self) -> None:
        self._plate()
        self._posts()
        self._rail(_SEAT + self.height * 0.72, self.height * 0.26, self.cloth)
        y = _SEAT + 0.2
        for side in (-1, 1):
            x = side * (self.half + 0.01)
            self.block(x, y, 0.0, 0.026, 0.014, self.deep)
            self.block(x, _SEAT + 0.08, self.deep - 0.04, self.stick * 0.8, 0.12, self.stick * 0.8)

    def _club(self) -> None:
        cloth = self.cloth
        self.block(0, 0.335, 0.02, self.half, 0.115, self.deep, tone=cloth)
        high = (self.height * 0.72 + 0.15) / 2
        self.block(
            0, 0.3 + high, -self.deep + 0.02, self.half + 0.07, high + 0.04, 0.06,
            lean=self.lean, tone=cloth,
        )  # fmt: skip
        for side in (-1, 1):
            x = side * (self.half + 0.035)
            self.block(x, 0.22 + 0.19, 0.02, 0.04, 0.19, self.deep, tone=cloth)

    def _round(self) -> None:
        self.block(0, _SEAT - self.thin, 0, self.half, self.thin, self.deep, cylinder=True)
        height = self.height * 0.5
        y = _SEAT + self.height - height * 0.62
        z, zero = self._back(y), self.zero
        edges = (
            (self.half * 0.92, zero, zero),
            (zero, self.lean * 0.018, zero + 0.018),
            (zero, height * 0.62, -self.lean * height * 0.62),
        )
        for side in (-0.45, 0.45):
            x = side * self.half
            start = (x, zero + _SEAT - 0.02, -self.deep * 0.75)
            self.stick_between(start, (x, y, z), self.stick * 0.8)
        self.parts.append(_Part((zero, y, z), edges, self.wood, cylinder=True))

    def _wing(self) -> None:
        self._panel()
        high = self.height * 0.34
        y = _SEAT + self.height - high
        for side in (-1, 1):
            x = side * (self.half + 0.012)
            self.block(x, y, self._back(y, 0.09), 0.018, high, 0.1, lean=self.lean, tone=self.cloth)
            self.block(x, _SEAT + 0.09, 0.02, 0.018, 0.1, self.deep, tone=self.cloth)

    def _cross(self) -> None:
        self._plate()
        self._posts()
        low, top = self.zero + _SEAT + 0.05, _SEAT + self.height - 0.03
        self._rail(top, 0.028)
        self._rail(low, 0.02)
        inner, zero = self.half - self.stick, self.zero
        middle, along = (low + top) / 2, (top - low) / 2
        centre = (zero, middle, self._back(middle))
        for side in (-1, 1):
            edges = (
                (zero + 0.016, zero, zero),
                (side * inner, along, -self.lean * along),
                (zero, zero, zero + 0.012),
            )
            self.parts.append(_Part(centre, edges, self.wood))

    def _corners(self) -> list[tuple[Float64, Float64]]:
        inset = self.stick
        return [
            (sx * (self.half - inset), sz * (self.deep - inset)) for sx in (-1, 1) for sz in (-1, 1)
        ]

    def _on_straight(self) -> None:
        for x, z in self._corners():
            self.block(x, self.under / 2, z, self.stick, self.under / 2, self.stick)

    def _on_splayed(self) -> None:
        for x, z in self._corners():
            start = (x * 1.28, self.zero, z * 1.28)
            self.stick_between(start, (x * 0.68, self.under, z * 0.68), self.stick * 0.85)

    def _on_sled(self) -> None:
        thin, middle = self.stick * 0.8, self.under / 2
        for x, z in self._corners():
            self.block(x, middle, z, thin, middle, thin)
        for side in (-1, 1):
            self.block(side * (self.half - self.stick), self.stick, 0, thin, self.stick, self.deep)

    def _on_pedestal(self) -> None:
        thick, middle = self.stick * 1.5, self.under / 2
        self.block(0, middle, 0, thick, middle, thick, cylinder=True)
        self.block(0, 0.018, 0, self.half * 0.85, 0.018, self.half * 0.85, cylinder=True)


def render(numbers: Float32) -> Pixels:
    """Render chairs: uint8 (n, 64, 64, 1)."""
    images = np.empty((len(numbers), *_SHAPE), np.uint8)
    kind, legs = (_FACTORS[i].of(numbers[:, i]).astype(np.int64) for i in (0, 3))
    # Sorted by rotation, so that parts are in small windows of the image.
    for some in batches_by_group(kind * len(LEGS) + legs, numbers[:, 1], _BATCH):
        builder = _ChairBuilder(numbers[some])
        buffer = _DepthBuffer(builder.rotation)
        for part in builder.build():
            buffer.add(part)
        images[some] = downsample(buffer.tone, _SAMPLES)
    return images


CHAIRS = Scene("chairs3d", _SHAPE, _FACTORS, len(_FACTORS) + len(_STYLE), "type", render, 4096)
