"""Images that lie in arrays, made to fit an experiment slice by slice.

Colour becomes grey by luminance and grey becomes colour by three equal channels, as pictures do;
the size is changed by area mean: a pixel is the mean of what it covers, weighted by how much of it.
"""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.decoders.geometry import box
from fastinfogan.data.image_set import CropResize
from fastinfogan.errors import InputError

ROWS = 512
"""Images that are read and resized together."""

Images = NDArray[np.uint8]


def read_in_parts(
    count: int, read: Callable[[int, int], Images], recipe: CropResize, where: Path
) -> Images:
    """Read a large array of images without having it in memory, but as the recipe makes it.

    Args:
        count: how many images.
        read: gives images `first` to `last`, uint8 (n, height, width, channels).
        recipe: what becomes of each.
        where: the file, for messages.

    Returns:
        uint8 (count, height, width, channels).

    Raises:
        InputError: memory does not hold the result, or the images cannot be made to fit.
    """
    shape = (count, *recipe.shape)
    try:
        images = np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:
        size = math.prod(shape) / 1e9
        raise InputError(
            f"{where}: {count:,} images of {size:.1f} GB: no memory for them"
        ) from error
    for first in range(0, count, ROWS):
        last = min(first + ROWS, count)
        images[first:last] = fitted(read(first, last), recipe, where)
    return images


def fitted(images: Images, recipe: CropResize, where: Path) -> Images:
    """Make images as a recipe wants them.

    Args:
        images: uint8 (n, height, width, 1 or 3).
        recipe: what becomes of each.
        where: the file, for messages.

    Raises:
        InputError: another number of channels, or smaller than what is cut out.
    """
    shape = recipe.shape
    channels = images.shape[3]
    if channels not in (1, 3):
        raise InputError(f"{where}: images of 1 or 3 channels are needed, these have {channels}")
    try:
        top, left, down, across = box(recipe, *images.shape[1:3])
    except ValueError as error:
        raise InputError(f"{where}: images of {error}") from error
    images = images[:, top : top + down, left : left + across]
    if channels == 3 and shape.channels == 1:
        red, green, blue = (images[..., i].astype(np.uint32) for i in range(3))
        # Pillow's weights of luminance, in 1/65536.
        grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
        images = grey.astype(np.uint8)[..., None]
    if (down, across) != (shape.height, shape.width):
        flat = images.reshape(len(images), down, -1).astype(np.float32)
        rows = np.matmul(_area(down, shape.height), flat)
        rows = rows.reshape(len(images), shape.height, across, images.shape[3])
        means = np.matmul(_area(across, shape.width), rows)
        images = (means + np.float32(0.5)).astype(np.uint8)
    return np.broadcast_to(images, (len(images), *shape))


def _area(pixels: int, fewer: int) -> NDArray[np.float32]:
    """How much of each pixel a larger or smaller one covers: (fewer, pixels), rows of sum 1."""
    ends = np.arange(fewer + 1) * (pixels / fewer)
    places = np.arange(pixels)
    covered = np.minimum(ends[1:, None], places + 1) - np.maximum(ends[:-1, None], places)
    covered = covered.clip(0)
    shares: NDArray[np.float32] = (covered / covered.sum(1, keepdims=True)).astype(np.float32)
    return shares


class NpzArray:
    """An array inside an .npz, read from its first image to its last and never as a whole.

    Args:
        archive: the open .npz.
        name: of the array.

    Attributes:
        shape, dtype: of the array.

    Raises:
        ValueError: pickled objects, or a layout that is not NumPy's usual one; and what `zipfile`
            and NumPy raise on a damaged archive.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._file: IO[bytes] = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(self._file)
        headers: dict[tuple[int, int], Callable[[IO[bytes]], Any]] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in headers:
            raise ValueError(f"{name} is of version {version} of NumPy's format")
        self.shape: tuple[int, ...]
        self.dtype: np.dtype[Any]
        self.shape, by_columns, self.dtype = headers[version](self._file)
        if self.dtype.hasobject:
            raise ValueError(f"{name} holds pickled objects, which are not read")
        if by_columns and len(self.shape) > 1:
            raise ValueError(f"{name} is stored by columns")

    def next(self, count: int) -> NDArray[Any]:
        """The next rows.

        Raises:
            ValueError, OSError and others: the array ends before them, or is damaged.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize * count
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("an array ends before its last row")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def close(self) -> None:
        """Read nothing more; a byte beyond the end has the checksum compared.

        Raises:
            zipfile.BadZipFile: the checksum is another.
        """
        self._file.read(1)
        self._file.close()
