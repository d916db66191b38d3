"""Heads under a light, 32x32 grey, with the factors of the paper's 3D Faces.

A head is a smooth union of some twenty ellipsoids (skull, jaw, brows, nose, lips, ears, hair), with
indented eye sockets and painted brows, irises and lips; an identity is their sizes, positions and
tones. In orthographic projection the depth and slope of an ellipsoid are closed forms, so a head is
rendered in one pass. The set stands in for the paper's heads, of Paysan et al. 2009, which have a
licence of their own.
"""

from dataclasses import dataclass
from typing import Any, Final

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
    batches_by_group,
    between,
    cos_sin,
    covered,
    downsample,
    per_image,
)

_SIDE: Final = 32
_SHAPE: Final = ImageShape(_SIDE, _SIDE, 1)
_BATCH: Final = 64  # heads at once: their arrays fit into a core's cache
_SAMPLES: Final = 2  # samples along a pixel's side
_VIEW: Final = 1.14  # half of the view; a skull is 1.6 high
_BACKGROUND: Final = np.float32(0.4)
_FAR: Final = np.float32(-9.0)  # depth of the background
_NOWHERE: Final = np.float32(-99.0)  # depth outside of an ellipsoid
_AMBIENT, _DIRECT = np.float32(0.18), np.float32(0.9)
_LIGHT_HEIGHT = 22.0  # degrees above the camera

_FACTORS = (
    Factor("azimuth", -60.0, 60.0),
    Factor("elevation", -22.0, 22.0),
    Factor("lighting", -80.0, 80.0),
    Factor("width", 0.8, 1.2),
)
_IDENTITY = (
    "skull", "jaw", "jaw length", "chin", "cheeks", "brow", "eye distance", "eye size",
    "eye height",
    "nose length", "nose width", "nose reach", "nose tip", "mouth width", "lips", "mouth height",
    "ears", "hair", "hair length", "hair tone", "skin", "brow tone", "brow lift", "neck",
)  # fmt: skip


@dataclass(frozen=True)
class _Ellipsoid:
    """An ellipsoid in head coordinates, x to the left ear, y up, z to the nose: all (n,)."""

    centre: tuple[Float64, ...]
    radii: tuple[Float64, ...]
    pitch: float = 0.0  # degrees, upper end backwards
    roll: float = 0.0  # degrees, outer end downwards
    blend: float = 0.1  # depth over which it blends into the surface
    tone: Scalar = 0.0


@dataclass
class _Projected:
    """An ellipsoid in camera coordinates: float32 (n, 1, 1) each."""

    centre: tuple[Float32, ...]
    form: tuple[Float32, ...]  # quadratic form xx, xy, xz, yy, yz, zz, 1 on the surface
    window: tuple[slice, slice]  # rows and columns that it may cover


@dataclass
class _Buffers:
    """What is visible at each sample: float32 (n, side, side)."""

    depth: Float32
    slope_x: Float32
    slope_y: Float32
    tone: Float32

    def part(self, window: tuple[slice, slice]) -> "_Buffers":
        """Return views of a window."""
        buffers = (self.depth, self.slope_x, self.slope_y, self.tone)
        return _Buffers(*(each[:, *window] for each in buffers))


class _Head:
    """Renderer of heads, given by float32 (n, columns)."""

    def __init__(self, numbers: Float32) -> None:
        self.count = len(numbers)
        azimuth, elevation, lighting, self.width = (
            f.of(numbers[:, i]) for i, f in enumerate(_FACTORS)
        )
        self._identity = dict(
            zip(_IDENTITY, numbers[:, len(_FACTORS) :].astype(np.float64).T, strict=True)
        )
        self._camera = Camera(azimuth, elevation)
        (cl, sl), (ch, sh) = cos_sin(lighting), cos_sin(np.full(self.count, _LIGHT_HEIGHT))
        self.light = tuple(per_image(part) for part in (sl * ch, sh, cl * ch))
        step = 2 * _VIEW / (_SIDE * _SAMPLES)
        places = ((np.arange(_SIDE * _SAMPLES) + 0.5) * step - _VIEW).astype(np.float32)
        self.x, self.y = places[None, None, :], -places[None, :, None] + np.float32(0.06)

    def trait(self, name: str, low: float, high: float) -> Float64:
        """Return a trait of the identities, in [low, high]."""
        return between(self._identity[name].astype(np.float32), low, high)

    def project(self, ellipsoid: _Ellipsoid) -> _Projected:
        """Project an ellipsoid."""
        cx, cy, cz = ellipsoid.centre
        centre = self._camera((cx * self.width, cy, cz))
        (cp, sp), (cr, sr) = (
            cos_sin(np.full(self.count, a)) for a in (ellipsoid.pitch, ellipsoid.roll)
        )
        rx, ry, rz = ellipsoid.radii
        zero = np.zeros(self.count)
        # Rows of the map from head coordinates to the unit ball; width scales the head's x.
        axes = (
            (cr / rx / self.width, sr / rx, zero),
            (-sr * cp / ry / self.width, cr * cp / ry, -sp / ry),
            (-sr * sp / rz / self.width, cr * sp / rz, cp / rz),
        )
        views = [self._camera(axis) for axis in axes]
        form = [
            views[0][i] * views[0][j] + views[1][i] * views[1][j] + views[2][i] * views[2][j]
            for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
        ]
        xx, xy, xz, yy, yz, zz = form
        # Half of its extent: square roots of the diagonal of the inverse form.
        whole = xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
        across, down = np.sqrt((yy * zz - yz * yz) / whole), np.sqrt((xx * zz - xz * xz) / whole)
        window = (
            covered(-self.y[0, :, 0], -centre[1], down),
            covered(self.x[0, 0, :], centre[0], across),
        )
        return _Projected(
            tuple(per_image(c) for c in centre), tuple(per_image(f) for f in form), window
        )

    def add(self, buffers: _Buffers, ellipsoid: _Ellipsoid) -> None:
        """Blend an ellipsoid into the surface."""
        seen = self.project(ellipsoid)
        buffers = buffers.part(seen.window)
        xx, xy, xz, yy, yz, zz = seen.form
        u, v = self._offsets(seen)
        inverse = 1 / zz
        # The nearer root w of form(u, v, w) = 1; its discriminant is zz - a u u - 2 b u v - c v v.
        a, b, c = zz * xx - xz * xz, zz * xy - xz * yz, zz * yy - yz * yz
        av, bu = b * v, b * u
        left = a * u + av
        inside = (zz - c * v * v - (u * u) * a) - (u * 2) * av
        hit = inside > 0
        root = np.sqrt(np.maximum(inside, np.float32(1e-5)))
        depth = (seen.centre[2] - (xz * u + yz * v) * inverse) + root * inverse
        depth = np.where(hit, depth, _NOWHERE)
        steep = inverse / root
        slope_x = left * -steep - xz * inverse
        slope_y = (bu + c * v) * -steep - yz * inverse

        over = depth - buffers.depth
        share = np.clip(over * np.float32(0.5 / ellipsoid.blend) + np.float32(0.5), 0, 1)
        buffers.depth += share * (over + np.float32(ellipsoid.blend) * (1 - share))
        buffers.slope_x += share * (slope_x - buffers.slope_x)
        buffers.slope_y += share * (slope_y - buffers.slope_y)
        self._colour(buffers, ellipsoid.tone, share)

    def _colour(self, buffers: _Buffers, tone: Scalar, share: Float32) -> None:
        wanted = per_image(np.broadcast_to(np.asarray(tone, np.float64), self.count))
        buffers.tone += share * (wanted - buffers.tone)

    def indent(self, buffers: _Buffers, ellipsoid: _Ellipsoid, deep: float) -> None:
        """Indent and slightly darken the surface inside an ellipsoid."""
        seen = self.project(ellipsoid)
        buffers = buffers.part(seen.window)
        inside, along_x, along_y = self._within(buffers, seen)
        weight = inside * inside
        by = np.float32(deep)
        buffers.depth -= by * weight
        buffers.slope_x += (4 * by) * inside * along_x
        buffers.slope_y += (4 * by) * inside * along_y
        buffers.tone *= 1 - np.float32(0.35) * weight

    def paint(self, buffers: _Buffers, ellipsoid: _Ellipsoid, sharp: float = 2.5) -> None:
        """Colour the surface inside an ellipsoid with its tone."""
        seen = self.project(ellipsoid)
        buffers = buffers.part(seen.window)
        inside, _, _ = self._within(buffers, seen)
        share = np.minimum(inside * np.float32(sharp), np.float32(1))
        self._colour(buffers, ellipsoid.tone, share)

    def _offsets(self, seen: _Projected) -> tuple[Float32, Float32]:
        rows, columns = seen.window
        return self.x[..., columns] - seen.centre[0], self.y[:, rows] - seen.centre[1]

    def _within(self, buffers: _Buffers, seen: _Projected) -> tuple[Float32, Float32, Float32]:
        """Return max(1 - form, 0) on the surface, and half the slopes of the form along x and y."""
        xx, xy, xz, yy, yz, zz = seen.form
        u, v = self._offsets(seen)
        w = buffers.depth - seen.centre[2]
        nx, ny = (xx * u + xy * v) + xz * w, (xy * u + yy * v) + yz * w
        nz = (xz * u + yz * v) + zz * w
        inside = np.maximum(1 - (u * nx + v * ny + w * nz), 0)
        return inside, nx + nz * buffers.slope_x, ny + nz * buffers.slope_y

    def shade(self, buffers: _Buffers) -> Float32:
        """Return the brightness in [0, 1], diffuse with a weak specular term."""
        lx, ly, lz = self.light
        length = np.sqrt(buffers.slope_x * buffers.slope_x + buffers.slope_y * buffers.slope_y + 1)
        facing = (lz - buffers.slope_x * lx - buffers.slope_y * ly) / length
        lit = np.maximum(facing, 0)
        sky = _AMBIENT * (1 - buffers.slope_y / length * np.float32(0.35))
        bright = buffers.tone * (sky + _DIRECT * lit)
        gloss = lit * lit
        gloss = gloss * gloss
        bright += np.float32(0.10) * gloss * gloss
        return np.where(buffers.depth > np.float32(-8), np.clip(bright, 0, 1), _BACKGROUND)


def render(numbers: Float32) -> Pixels:
    """Render heads: uint8 (n, 32, 32, 1)."""
    images = np.empty((len(numbers), *_SHAPE), np.uint8)
    # Sorted by azimuth, so that features are in small windows of the image.
    for some in batches_by_group(np.zeros(len(numbers), np.int64), numbers[:, 0], _BATCH):
        images[some] = _render(numbers[some])
    return images


def _render(numbers: Float32) -> Pixels:
    h = _Head(numbers)
    n = h.count

    zero = np.zeros(n)
    skin = h.trait("skin", 0.55, 0.95)
    hair_tone = h.trait("hair tone", 0.06, 0.5)
    skull = h.trait("skull", 0.94, 1.08)
    jaw, jaw_length = h.trait("jaw", 0.36, 0.52), h.trait("jaw length", -0.08, 0.06)
    eye_x, eye_y = h.trait("eye distance", 0.235, 0.30), h.trait("eye height", 0.04, 0.12)
    eye_size = h.trait("eye size", 0.85, 1.2)
    nose_y, nose_wide = h.trait("nose length", -0.30, -0.20), h.trait("nose width", 0.8, 1.35)
    reach, tip = h.trait("nose reach", -0.05, 0.09), h.trait("nose tip", 0.10, 0.15)
    mouth_y = h.trait("mouth height", -0.60, -0.52) + jaw_length * 0.6
    mouth_wide, lips = h.trait("mouth width", 0.17, 0.27), h.trait("lips", 0.035, 0.075)
    brow = h.trait("brow", 0.0, 0.06)
    ears = h.trait("ears", 0.8, 1.3)

    side = _SIDE * _SAMPLES
    buffers = _Buffers(
        np.full((n, side, side), _FAR), *(np.zeros((n, side, side), np.float32) for _ in "xyt")
    )

    def ellipsoid(
        centre: tuple[Scalar, Scalar, Scalar], radii: tuple[Scalar, Scalar, Scalar],
        blend: float = 0.1, *, pitch: float = 0.0, roll: float = 0.0, tone: Scalar = skin,
    ) -> _Ellipsoid:  # fmt: skip
        middle, sizes = tuple(zero + c for c in centre), tuple(zero + r for r in radii)
        return _Ellipsoid(middle, sizes, pitch, roll, blend, tone)

    def add(*arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as ellipsoid's
        h.add(buffers, ellipsoid(*arguments, **more))

    def paint(sharp: float, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as ellipsoid's
        h.paint(buffers, ellipsoid(*arguments, **more), sharp)

    neck = h.trait("neck", 0.34, 0.46)
    add((0, -1.3, -0.22), (neck, 0.95, neck), 0.05, pitch=-8, tone=skin * 0.9)
    for x in (-1, 1):
        add((x * 0.70, 0, -0.08), (0.07, 0.19 * ears, 0.13 * ears), 0.03)
    add((0, 0.24, -0.10), (0.68 * skull, 0.74, 0.80), 0.06)
    add((0, -0.14, 0.10), (0.60, 0.74, 0.64), 0.16)
    add((0, -0.58 + jaw_length, 0.20), (jaw, 0.38, 0.46), 0.14)
    chin, cheeks = h.trait("chin", 0.18, 0.32), h.trait("cheeks", 0.23, 0.37)
    add((0, -0.80 + jaw_length, 0.40), (chin, 0.17, 0.22), 0.12)
    for x in (-1, 1):
        add((x * 0.33, -0.19, cheeks), (0.27, 0.24, 0.26), 0.12, roll=x * 20)
    for x in (-1, 1):
        h.indent(buffers, ellipsoid((x * eye_x, eye_y, 0.66), (0.21, 0.15, 0.30)), 0.13)
    for x in (-1, 1):
        add((x * 0.24, eye_y + 0.18, 0.48 + brow), (0.24, 0.10, 0.15), 0.09, roll=x * -6)

    bridge = (0.085 * nose_wide, 0.28, 0.12)
    add((0, nose_y + 0.2, 0.72 + reach * 0.5), bridge, 0.07, pitch=18)
    add((0, nose_y, 0.84 + reach), (tip * nose_wide * 0.95, tip * 0.85, tip), 0.06)
    for x in (-1, 1):
        wing = (x * 0.10 * nose_wide, nose_y - 0.03, 0.76 + reach * 0.6)
        add(wing, (0.07, 0.06, 0.09), 0.05)

    lip = skin * 0.62
    add((0, mouth_y - 0.06, 0.60), (mouth_wide * 0.85, lips * 1.1, 0.11), 0.04, tone=lip)
    add((0, mouth_y + 0.03, 0.615), (mouth_wide, lips, 0.12), 0.03, tone=lip)
    between_lips = (mouth_wide * 1.05, 0.025, 0.2)
    paint(2.5, (0, mouth_y - 0.015, 0.70), between_lips, tone=skin * 0.25)

    brow_tone = h.trait("brow tone", 0.2, 0.7) * skin
    brow_lift = h.trait("brow lift", -0.03, 0.03)
    for x in (-1, 1):
        at = x * eye_x
        add((at, eye_y, 0.545), (0.115 * eye_size, 0.085 * eye_size, 0.10), 0.01, tone=0.95)
        paint(4, (at, eye_y, 0.64), (0.055 * eye_size, 0.065 * eye_size, 0.1), tone=0.06)
        lid = (at, eye_y + 0.075 * eye_size, 0.60)
        paint(3, lid, (0.14, 0.035, 0.15), tone=skin * 0.3)
        arch = (x * 0.26, eye_y + 0.20 + brow_lift, 0.66)
        paint(2.5, arch, (0.19, 0.05, 0.25), roll=x * -8, tone=brow_tone)

    amount, length = h.trait("hair", -0.06, 0.12), h.trait("hair length", -0.20, 0.40)
    mop = (0.71 + amount * 0.6, 0.70 + amount + length * 0.4, 0.79 + amount * 0.6)
    add((0, 0.36 - length * 0.5, -0.27), mop, 0.02, pitch=-8, tone=hair_tone)
    return downsample(h.shade(buffers), _SAMPLES)


FACES = Scene("faces3d", _SHAPE, _FACTORS, len(_FACTORS) + len(_IDENTITY), None, render, 2048)
