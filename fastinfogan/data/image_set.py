"""Sets of images: in memory as uint8, or still encoded in files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastinfogan.errors import InputError


class ImageShape(NamedTuple):
    """Height, width and channels of an image."""

    height: int
    width: int
    channels: int

    def __str__(self) -> str:
        colour = {1: "grey", 3: "colour"}.get(self.channels, f"{self.channels}-channel")
        return f"{self.height}x{self.width} {colour}"


Fingerprint = dict[str, str]
"""What a resumed run must find unchanged, by name, so that an error can say what changed."""


@dataclass(frozen=True)
class Factors:
    """Ground-truth factors of variation, one number per factor and image.

    Attributes:
        names: of the factors, such as ("azimuth", "lighting").
        values: float32 (N, factors); a class index for factors with classes, degrees for angles,
            else the unit of the format.
        classes: number of classes of each factor; None if it is continuous.
        periods: period of each factor, such as 360 for degrees; None if it has none.

    Raises:
        InputError: the shapes do not match.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]
    classes: tuple[int | None, ...]
    periods: tuple[float | None, ...]

    def __post_init__(self) -> None:
        count = len(self.names)
        if self.values.dtype != np.float32 or self.values.ndim != 2:
            raise InputError(
                f"factors are float32 (N, factors), not {self.values.dtype} {self.values.shape}"
            )
        if not self.values.shape[1] == len(self.classes) == len(self.periods) == count:
            raise InputError(
                f"{count} factors are named; there are {self.values.shape[1]} columns of values, "
                f"{len(self.classes)} numbers of classes and {len(self.periods)} periods"
            )


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, with labels and factors where the format has them.

    Labels and factors are only used for evaluation.

    Attributes:
        name: of the set, for messages and the run's config.
        images: uint8 (N, height, width, channels).
        labels: int64 (N,), >= 0, or None; see `as_labels`.
        test: the test split, if the format has one.
        factors: of the N images, or None.

    Raises:
        InputError: no images, or labels or factors that do not match them.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    test: "ImageSet | None" = None
    factors: Factors | None = None

    def __post_init__(self) -> None:
        _check_lengths(self.name, len(self.images), self.labels, self.factors)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> ImageShape:
        """Height, width and channels of every image."""
        return ImageShape(*self.images.shape[1:])

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Count, shape and SHA-256 of the images."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return {
            "images": str(len(self.images)),
            "shape": str(self.shape),
            "sha256 of pixels": digest.hexdigest(),
        }

    def require(self, shape: ImageShape) -> None:
        """Check the shape of the images.

        Raises:
            InputError: they have another shape.
        """
        if self.shape != shape:
            raise InputError(f"{self.name}: {shape} images are needed, these are {self.shape}")


@dataclass(frozen=True)
class CropResize:
    """Centre crop, conversion to grey or RGB, and resize of an image of any size.

    Attributes:
        shape: of the result.
        crop: height and width of the centre crop, pixels; None for the largest crop with the
            aspect ratio of `shape`.
    """

    shape: ImageShape
    crop: tuple[int, int] | None = None

    def __str__(self) -> str:
        cut = f"the centre's {self.crop[0]}x{self.crop[1]}" if self.crop else "the centre"
        return f"{cut} to {self.shape}"

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the crop of a `height` x `width` image.

        Raises:
            ValueError: the image is smaller than `crop`.
        """
        if self.crop:
            down, across = self.crop
            if down > height or across > width:
                raise ValueError(f"{height}x{width}, smaller than the {down}x{across} crop")
        else:
            down = min(height, max(round(width * self.shape.height / self.shape.width), 1))
            across = min(width, max(round(height * self.shape.width / self.shape.height), 1))
        return (height - down) // 2, (width - across) // 2, down, across


@dataclass(frozen=True)
class ImageFile:
    """An encoded image: `size` bytes of a file; `name` is its relative path within the set."""

    name: str
    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class EncodedImageSet:
    """Encoded images, which a `Decoder` decodes.

    Attributes:
        name: of the set.
        files: the N images, in an order that does not depend on the machine.
        transform: applied to each decoded image.
        labels, test, factors: as in `ImageSet`.
    """

    name: str
    files: Sequence[ImageFile]
    transform: CropResize
    labels: NDArray[np.int64] | None = None
    test: "EncodedImageSet | None" = None
    factors: Factors | None = None

    def __post_init__(self) -> None:
        _check_lengths(self.name, len(self.files), self.labels, self.factors)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> ImageShape:
        """Height, width and channels of every image."""
        return self.transform.shape

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Count, SHA-256 of names and sizes, and the transform.

        A file replaced by another of exactly the same size is not noticed when a run is resumed:
        modification times change with every copy of a set. The cache does compare them.
        """
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}\0{file.size}\0".encode())
        return {
            "images": str(len(self.files)),
            "sha256 of names and sizes": digest.hexdigest(),
            "recipe": str(self.transform),
        }


def _check_lengths(
    name: str, count: int, labels: NDArray[np.int64] | None, factors: Factors | None
) -> None:
    """Check that there are images, and that labels and factors match them.

    Raises:
        InputError: they do not.
    """
    if count == 0:
        raise InputError(f"{name} holds no images")
    if labels is not None:
        if labels.dtype != np.int64 or labels.ndim != 1 or (labels < 0).any():
            raise InputError(f"{name}: labels must be int64 (N,), >= 0")
        if len(labels) != count:
            raise InputError(
                f"{name} holds {count} images and {len(labels)} labels; "
                "there must be one label per image"
            )
    if factors is not None and len(factors.values) != count:
        raise InputError(f"{name} holds {count} images and factors of {len(factors.values)}")


def as_images(array: NDArray[np.generic], where: Path | str) -> NDArray[np.uint8]:
    """Check an array of images and add the channel axis where it lacks one.

    Args:
        array: uint8 (N, H, W) or (N, H, W, C).
        where: file name for errors.

    Raises:
        InputError: another dtype or rank.
    """
    if array.dtype != np.uint8:
        raise InputError(
            f"{where}: images must be uint8 in 0..255, these are {array.dtype}; convert them first"
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        raise InputError(
            f"{where}: images must be (N, height, width) or (N, height, width, channels), "
            f"these are {array.shape}"
        )
    return np.ascontiguousarray(array, dtype=np.uint8)


def as_labels(array: NDArray[np.generic], where: Path | str) -> NDArray[np.int64]:
    """Check an array of labels.

    Args:
        array: (N,), (N, 1) or (1, N); integers >= 0 of any numeric dtype.
        where: file name for errors.

    Returns:
        int64 (N,).

    Raises:
        InputError: another shape, dtype or range.
    """
    if array.size != max(array.shape, default=0):
        raise InputError(f"{where}: labels must be one number per image, these are {array.shape}")
    if array.dtype.kind not in "buif":
        raise InputError(f"{where}: labels must be integers, these are {array.dtype}")
    flat = array.reshape(-1)
    with np.errstate(invalid="ignore"):  # the comparison below finds what overflows
        whole = flat.astype(np.int64)
    if (whole < 0).any() or not np.array_equal(whole.astype(flat.dtype), flat):
        raise InputError(f"{where}: labels must be integers in [0, 2^63)")
    return whole
