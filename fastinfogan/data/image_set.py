"""What every format is read into: a set of images, in memory as uint8 or still encoded."""

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
"""What a resumed run must find again, by name, so that a message can say what changed."""


@dataclass(frozen=True)
class Factors:
    """What is known of each image, one number for each thing that varies.

    Attributes:
        names: of the factors, as in ("azimuth", "lighting").
        values: float32 (N, factors). A number of a class, 0 or more, where a factor has classes;
            an angle in degrees; else in the format's own unit.
        classes: how many classes each factor has; None for one that is continuous.
        periods: after how much each factor comes round again, as 360 degrees do; None if it
            does not.

    Raises:
        InputError: the parts do not fit together.
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
    """A set of images, and of labels and factors where the format has them.

    Labels and factors are only ever used to evaluate.

    Attributes:
        name: what the user would call it, for messages and the run's record.
        images: uint8 (N, height, width, channels).
        labels: int64 (N,), 0 or more, or None; see `as_labels`.
        test: the images set aside by the format for testing, if any.
        factors: of N images, or None.

    Raises:
        InputError: no images, or labels that are not one whole number of 0 or more per image.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    test: "ImageSet | None" = None
    factors: Factors | None = None

    def __post_init__(self) -> None:
        check_known(self.name, len(self.images), self.labels, self.factors)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> ImageShape:
        """Height, width and channels of every image."""
        return ImageShape(*self.images.shape[1:])

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Number, shape and SHA-256 of the images."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return {
            "images": str(len(self.images)),
            "shape": str(self.shape),
            "sha256 of pixels": digest.hexdigest(),
        }

    def require(self, shape: ImageShape) -> None:
        """Check that the images are as an experiment needs them.

        Raises:
            InputError: they have another size or number of channels.
        """
        if self.shape != shape:
            raise InputError(f"{self.name}: {shape} images are needed, these are {self.shape}")


@dataclass(frozen=True)
class CropResize:
    """From a picture of any size to an image: cut out, make grey or RGB, resize.

    Attributes:
        shape: of the image.
        crop: height and width of a box in the picture's centre, which is cut out first; None for
            the largest one of the image's proportions.
    """

    shape: ImageShape
    crop: tuple[int, int] | None = None

    def __str__(self) -> str:
        cut = f"the centre's {self.crop[0]}x{self.crop[1]}" if self.crop else "the centre"
        return f"{cut} to {self.shape}"


@dataclass(frozen=True)
class ImageFile:
    """Where an encoded picture lies.

    Attributes:
        name: inside the set, for messages and the fingerprint: a relative path.
        file: that holds it.
        offset: of its first byte in the file.
        size: in bytes.
    """

    name: str
    file: Path
    offset: int
    size: int


@dataclass(frozen=True)
class EncodedImageSet:
    """A set of pictures that are yet to be decoded; see `fastinfogan.data.decoders.base`.

    Attributes:
        name: what the user would call it.
        pictures: N of them, in an order that does not depend on the machine.
        recipe: what becomes of each.
        labels, test, factors: as in `ImageSet`.
    """

    name: str
    pictures: Sequence[ImageFile]
    recipe: CropResize
    labels: NDArray[np.int64] | None = None
    test: "EncodedImageSet | None" = None
    factors: Factors | None = None

    def __post_init__(self) -> None:
        check_known(self.name, len(self.pictures), self.labels, self.factors)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def shape(self) -> ImageShape:
        """Height, width and channels of every image."""
        return self.recipe.shape

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Number of pictures, SHA-256 of their names and sizes, and the recipe.

        A run's record adds the decoder. A picture that is replaced by another of the same size to
        the byte is not noticed when a run goes on: only reading all of them would tell, and times
        change with every copy of a set. The cache looks at times, and so decodes it again.
        """
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(f"{picture.name}\0{picture.size}\0".encode())
        return {
            "images": str(len(self.pictures)),
            "sha256 of names and sizes": digest.hexdigest(),
            "recipe": str(self.recipe),
        }


def check_known(
    name: str, count: int, labels: NDArray[np.int64] | None, factors: Factors | None
) -> None:
    """Check a set's size, and what is known of its images against it.

    Raises:
        InputError: there are no images, or labels or factors that do not fit.
    """
    if count == 0:
        raise InputError(f"{name} holds no images")
    if labels is not None:
        if labels.dtype != np.int64 or labels.ndim != 1 or (labels < 0).any():
            raise InputError(f"{name}: labels must be whole numbers, int64 (N,), 0 or more")
        if len(labels) != count:
            raise InputError(
                f"{name} holds {count} images and {len(labels)} labels; "
                "there must be one label per image"
            )
    if factors is not None and len(factors.values) != count:
        raise InputError(f"{name} holds {count} images and factors of {len(factors.values)}")


def pixels(array: NDArray[np.generic], where: Path | str) -> NDArray[np.uint8]:
    """Check an array of images and give it its channel axis.

    Args:
        array: uint8 (N, H, W) or (N, H, W, C).
        where: the file, for messages.

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
        array: (N,), (N, 1) or (1, N): whole numbers of 0 or more, also as floating point.
        where: the file, for messages.

    Returns:
        int64 (N,).

    Raises:
        InputError: another shape, dtype or range.
    """
    if array.size != max(array.shape, default=0):
        raise InputError(f"{where}: labels must be one number per image, these are {array.shape}")
    if array.dtype.kind not in "buif":
        raise InputError(f"{where}: labels must be whole numbers, these are {array.dtype}")
    flat = array.reshape(-1)
    with np.errstate(invalid="ignore"):  # the comparison below finds what does not fit
        whole = flat.astype(np.int64)
    if (whole < 0).any() or not np.array_equal(whole.astype(flat.dtype), flat):
        raise InputError(f"{where}: labels must be whole numbers of 0 or more, below 2^63")
    return whole
