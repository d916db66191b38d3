"""What every format is read into: a set of images, in memory as uint8."""

import hashlib
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


@dataclass(frozen=True)
class Source:
    """A set of images, and of labels where the format has them.

    Labels are only ever used to evaluate.

    Attributes:
        name: what the user would call it, for messages and the run's record.
        images: uint8 (N, height, width, channels).
        labels: int64 (N,), 0 or more, or None; see `as_labels`.
        test: the images set aside by the format for testing, if any.

    Raises:
        InputError: no images, or labels that are not one whole number of 0 or more per image.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    test: "Source | None" = None

    def __post_init__(self) -> None:
        if len(self.images) == 0:
            raise InputError(f"{self.name} holds no images")
        if self.labels is None:
            return
        if self.labels.dtype != np.int64 or self.labels.ndim != 1 or (self.labels < 0).any():
            raise InputError(f"{self.name}: labels must be whole numbers, int64 (N,), 0 or more")
        if len(self.labels) != len(self.images):
            raise InputError(
                f"{self.name} holds {len(self.images)} images and {len(self.labels)} labels; "
                "there must be one label per image"
            )

    @property
    def shape(self) -> ImageShape:
        """Height, width and channels of every image."""
        return ImageShape(*self.images.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape and pixels: what a resumed run must find again."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()

    def require(self, shape: ImageShape) -> None:
        """Check that the images are as an experiment needs them.

        Raises:
            InputError: they have another size or number of channels.
        """
        if self.shape != shape:
            raise InputError(f"{self.name}: {shape} images are needed, these are {self.shape}")


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
