"""Chairs that turn, 64x64 grey on white: eight types on four kinds of legs.

A chair is made of blocks and drums, each a linear image of the unit cube or of a unit cylinder. The
camera is far away, so a ray meets a part between planes whose depths are linear in the pixel; the
nearest part wins. The set answers to the rendered chairs of Aubry et al. 2014, which the paper
trains on and which have to be downloaded; these are ours.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from fastinfogan.data.image_set import ImageShape
from fastinfogan.data.synthetic.scene import (
    Exact,
    Factor,
    Number,
    Numbers,
    Pixels,
    Scene,
    averaged,
    between,
    reached,
    turn,
    wide,
)

_SIDE: Final = 64
_SHAPE: Final = ImageShape(_SIDE, _SIDE, 1)
_ACROSS: Final = 3  # samples along a pixel's side
_TOGETHER: Final = 32  # chairs at once: their parts' maps stay in a core's cache
_VIEW: Final = 0.66  # half of what an image shows, in metres
_MIDDLE: Final = 0.49  # what stands in the middle of an image, up the film
_CAMERA_HEIGHT: Final = 20.0  # degrees
_LIGHT: Final = (-0.43, 0.75, 0.5)  # where light comes from, in the camera's frame
_AMBIENT, _DIRECT = 0.34, 0.72
_SEAT: Final = 0.45  # height of every seat

TYPES: Final = ("panel", "ladder", "spindle", "armchair", "club", "round", "wing", "cross")
LEGS: Final = ("straight", "splayed", "sled", "pedestal")

_FACTORS = (
    Factor("type", 0, len(TYPES), classes=True),
    Factor("rotation", 0.0, 360.0, period=360.0),
    Factor("width", 0.8, 1.25),
    Factor("legs", 0, len(LEGS), classes=True),
    Factor("back height", 0.36, 0.62),
)
_LOOK = ("depth", "thickness", "tilt", "wood", "cloth", "seat thickness")

Vector = tuple[Exact, ...]  # right or x, up or y, near or z


@dataclass(frozen=True)
class _Part:
    """A block or a drum in the chair's frame, x to its left, y up, z to its front: all (n,).

    Attributes:
        centre: of it.
        edges: from its centre to the middle of three faces; a drum's second edge is its axis.
        tone: of its paint.
        drum: whether it is round about its second edge.
    """

    centre: Vector
    edges: tuple[Vector, ...]
    tone: Exact
    drum: bool = False


class _Photo:
    """What is on the film so far.

    Args:
        rotation: float64 (n,), of the chairs, in degrees.
    """

    def __init__(self, rotation: Exact) -> None:
        n, side = len(rotation), _SIDE * _ACROSS
        (ca, sa), (ce, se) = turn(rotation), turn(np.full(n, _CAMERA_HEIGHT))
        self._rows = ((ca, np.zeros(n), sa), (se * sa, ce, -se * ca), (-ce * sa, se, ce * ca))
        self._depth = np.full((n, side, side), np.float32(-9))
        self.tone = np.ones((n, side, side), np.float32)
        step = 2 * _VIEW / side
        self._x = ((np.arange(side) + 0.5) * step - _VIEW).astype(np.float32)
        self._down = (self._x - np.float32(_MIDDLE)).astype(np.float32)  # minus the height

    def _seen(self, vector: Vector) -> Vector:
        x, y, z = vector
        right, up, near = (r[0] * x + r[1] * y + r[2] * z for r in self._rows)
        return right, up, near

    def add(self, part: _Part) -> None:
        """Put a part in front of what is behind it."""
        centre = self._seen(part.centre)
        edges = [self._seen(edge) for edge in part.edges]
        # Rows of the inverse of the edges: they send a point of the part to the unit cube.
        crosses = [_cross(edges[(i + 1) % 3], edges[(i + 2) % 3]) for i in range(3)]
        volume = _dot(edges[0], crosses[0])
        into = [tuple(c / volume for c in cross) for cross in crosses]
        reach = [
            np.abs(edges[0][axis]) + np.abs(edges[1][axis]) + np.abs(edges[2][axis])
            for axis in range(2)
        ]
        rows = reached(self._down, -centre[1], reach[1])
        columns = reached(self._x, centre[0], reach[0])
        u = self._x[None, None, columns] - wide(centre[0])
        v = -self._down[None, rows, None] - wide(centre[1])
        bright = [part.tone * _lit(row) for row in into]
        if part.drum:
            near, far, tone = self._round(into, part.tone, u, v)
            planes = [1]
        else:
            near, tone = _slab(into[0], u, v), wide(bright[0])
            far = near - _thick(into[0])
            planes = [1, 2]
        for i in planes:
            front = _slab(into[i], u, v)
            tone = np.where(front < near, wide(bright[i]), tone)
            near = np.minimum(near, front)
            far = np.maximum(far, front - _thick(into[i]))
        depth = self._depth[:, rows, columns]
        hits = near > far
        near = near + wide(centre[2])
        wins = hits & (near > depth)
        np.copyto(depth, near, where=wins)
        np.copyto(self.tone[:, rows, columns], tone, where=wins)

    def _round(
        self, into: list[Vector], tone: Exact, u: Numbers, v: Numbers
    ) -> tuple[Numbers, Numbers, Numbers]:
        """Where a ray enters and leaves an endless cylinder, and how bright it is there."""
        first, second = (
            (wide(row[0]) * u + wide(row[1]) * v, wide(row[2])) for row in (into[0], into[2])
        )
        square = first[1] * first[1] + second[1] * second[1]
        mixed = first[0] * first[1] + second[0] * second[1]
        rest = first[0] * first[0] + second[0] * second[0] - 1
        inside = mixed * mixed - square * rest
        root = np.sqrt(np.maximum(inside, 0))
        near = np.where(inside > 0, (root - mixed) / square, np.float32(-9))
        far = np.where(inside > 0, (-root - mixed) / square, np.float32(9))
        normal = [
            (first[0] + first[1] * near) * wide(into[0][axis])
            + (second[0] + second[1] * near) * wide(into[2][axis])
            for axis in range(3)
        ]
        length = np.sqrt(sum(each * each for each in normal)) + np.float32(1e-6)
        facing = sum(np.float32(_LIGHT[axis]) * normal[axis] for axis in range(3)) / length
        bright = np.float32(_AMBIENT) + np.float32(_DIRECT) * np.maximum(facing, 0)
        return near, far, np.minimum(wide(tone) * bright, 1)


def _dot(a: Vector, b: Vector) -> Exact:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vector, b: Vector) -> Vector:
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def _steep(row: Vector) -> Exact:
    return np.where(np.abs(row[2]) < 1e-5, 1e-5, row[2])


def _slab(row: Vector, u: Numbers, v: Numbers) -> Numbers:
    """The depth at which rays enter between two faces."""
    steep = _steep(row)
    along = wide(-row[0] / steep) * u + wide(1 / np.abs(steep))
    return along + wide(-row[1] / steep) * v


def _thick(row: Vector) -> Numbers:
    return wide(2 / np.abs(_steep(row)))


def _lit(row: Vector) -> Exact:
    """Brightness of the face that is seen, of the two that a row is normal to."""
    facing = row[0] * _LIGHT[0] + row[1] * _LIGHT[1] + row[2] * _LIGHT[2]
    facing = np.where(row[2] < 0, -facing, facing) / np.sqrt(_dot(row, row))
    return np.minimum(_AMBIENT + _DIRECT * np.maximum(facing, 0), 1.0)


class _Carpenter:
    """Chairs of one type on one kind of legs.

    Args:
        numbers: float32 (n, columns).
    """

    def __init__(self, numbers: Numbers) -> None:
        kind, self.rotation, wide, legs, self.height = (
            f.of(numbers[:, i]) for i, f in enumerate(_FACTORS)
        )
        look = dict(zip(_LOOK, numbers[:, len(_FACTORS) :].T, strict=True))
        self.kind, self.legs = TYPES[int(kind[0])], LEGS[int(legs[0])]
        self.zero = np.zeros(len(numbers))
        self.half = 0.225 * wide
        self.deep = between(look["depth"], 0.2, 0.235)
        self.stick = between(look["thickness"], 0.016, 0.026)
        self.lean = between(look["tilt"], 0.06, 0.22)  # metres back per metre up
        self.wood = between(look["wood"], 0.22, 0.72)
        cloth = between(look["cloth"], 0.25, 0.9)
        self.cloth = cloth if self.kind in ("club", "wing", "panel", "armchair") else self.wood
        self.thin = between(look["seat thickness"], 0.018, 0.04)
        self.under = self.zero + 0.22 if self.kind == "club" else _SEAT - 2 * self.thin
        self.parts: list[_Part] = []

    def build(self) -> list[_Part]:
        """All parts."""
        getattr(self, f"_{self.kind}")()
        getattr(self, f"_on_{self.legs}")()
        return self.parts

    def block(
        self, x: Number, y: Number, z: Number, rx: Number, ry: Number, rz: Number,
        *, lean: Exact | None = None, tone: Exact | None = None, drum: bool = False,
    ) -> None:  # fmt: skip
        """A part with edges along the axes; its upright edge leans back by a slope."""
        zero = self.zero
        upright = (zero, zero + ry, zero if lean is None else -lean * ry)
        edges = ((zero + rx, zero, zero), upright, (zero, zero, zero + rz))
        centre = (zero + x, zero + y, zero + z)
        self.parts.append(_Part(centre, edges, self.wood if tone is None else tone, drum))

    def stick_between(self, start: Vector, end: Vector, thick: Exact) -> None:
        """A block from one point to another that is higher."""
        zero = self.zero
        along, middle = (
            tuple((b + sign * a) / 2 for a, b in zip(start, end, strict=True)) for sign in (-1, 1)
        )
        edges = ((zero + thick, zero, zero), along, (zero, zero, zero + thick))
        self.parts.append(_Part(middle, edges, self.wood))

    def _back(self, y: Number, z: Number = 0.0) -> Exact:
        """Where the leaning back is at a height: its z."""
        back: Exact = -self.deep + 0.02 - self.lean * (y - _SEAT) + z
        return back

    def _plate(self) -> None:
        self.block(0, _SEAT - self.thin, 0, self.half, self.thin, self.deep, tone=self.cloth)

    def _posts(self) -> None:
        for side in (-1, 1):
            x = side * (self.half - self.stick)
            start = (x, self.zero + _SEAT - 0.02, self._back(self.zero + _SEAT - 0.02))
            top = self.zero + _SEAT + self.height
            self.stick_between(start, (x, top, self._back(top)), self.stick)

    def _rail(self, y: Number, half_height: Number, tone: Exact | None = None) -> None:
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
        self.block(0, _SEAT - self.thin, 0, self.half, self.thin, self.deep, drum=True)
        height = self.height * 0.5
        y = _SEAT + self.height - height * 0.62
        z = self._back(y)
        zero = self.zero
        edges = (
            (self.half * 0.92, zero, zero),
            (zero, self.lean * 0.018, zero + 0.018),
            (zero, height * 0.62, -self.lean * height * 0.62),
        )
        for side in (-0.45, 0.45):
            x = side * self.half
            start = (x, zero + _SEAT - 0.02, -self.deep * 0.75)
            self.stick_between(start, (x, y, z), self.stick * 0.8)
        self.parts.append(_Part((zero, y, z), edges, self.wood, drum=True))

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
        inner = self.half - self.stick
        for side in (-1, 1):
            zero = self.zero
            middle, along = (low + top) / 2, (top - low) / 2
            z = self._back(middle)
            edges = (
                (zero + 0.016, zero, zero),
                (side * inner, along, -self.lean * along),
                (zero, zero, zero + 0.012),
            )
            self.parts.append(_Part((zero, middle, z), edges, self.wood))

    def _corners(self) -> list[tuple[Exact, Exact]]:
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
        self.block(0, middle, 0, thick, middle, thick, drum=True)
        self.block(0, 0.018, 0, self.half * 0.85, 0.018, self.half * 0.85, drum=True)


def render(numbers: Numbers) -> Pixels:
    """Render chairs: uint8 (n, 64, 64, 1)."""
    images = np.empty((len(numbers), *_SHAPE), np.uint8)
    kind, legs = (_FACTORS[i].of(numbers[:, i]).astype(np.int64) for i in (0, 3))
    for build in np.unique(kind * len(LEGS) + legs):
        alike = np.flatnonzero(kind * len(LEGS) + legs == build)
        # Chairs turned the same way have their parts in the same windows.
        alike = alike[np.argsort(numbers[alike, 1], kind="stable")]
        for start in range(0, len(alike), _TOGETHER):
            some = alike[start : start + _TOGETHER]
            carpenter = _Carpenter(numbers[some])
            photo = _Photo(carpenter.rotation)
            for part in carpenter.build():
                photo.add(part)
            images[some] = averaged(photo.tone, _ACROSS)
    return images


CHAIRS = Scene("chairs3d", _SHAPE, _FACTORS, len(_FACTORS) + len(_LOOK), "type", render, 4096)
