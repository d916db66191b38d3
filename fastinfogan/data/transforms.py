"""Conversions of images: cropping and resizing arrays, and to and from what the networks see."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastinfogan.data.image_set import CropResize
from fastinfogan.errors import InputError

CHUNK = 512
"""Images that are read and resized together."""

Images = NDArray[np.uint8]


def read_chunks(
    count: int, read: Callable[[int, int], Images], transform: CropResize, where: Path
) -> Images:
    """Read a large array chunk by chunk; only the transformed images are held in memory.

    Args:
        count: number of images.
        read: returns images `first` to `last`, uint8 (n, height, width, channels).
        transform: applied to each.
        where: file name for errors.

    Returns:
        uint8 (count, height, width, channels).

    Raises:
        InputError: not enough memory, or the images cannot be transformed.
    """
    shape = (count, *transform.shape)
    try:
        images = np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:
        size = np.prod(shape, dtype=object) / 1e9
        raise InputError(f"{where}: no memory for {count:,} images, {size:.1f} GB") from error
    for first in range(0, count, CHUNK):
        last = min(first + CHUNK, count)
        images[first:last] = transform_array(read(first, last), transform, where)
    return images


def transform_array(images: Images, transform: CropResize, where: Path) -> Images:
    """Crop, convert and resize an array of images, resizing by area mean.

    Colour becomes grey by luminance, grey becomes colour by three equal channels, as for encoded
    images.

    Args:
        images: uint8 (n, height, width, 1 or 3).
        transform: what to apply.
        where: file name for errors.

    Raises:
        InputError: another number of channels, or images smaller than the crop.
    """
    shape = transform.shape
    channels = images.shape[3]
    if channels not in (1, 3):
        raise InputError(f"{where}: images must have 1 or 3 channels, these have {channels}")
    try:
        top, left, down, across = transform.box(*images.shape[1:3])
    except ValueError as error:
        raise InputError(f"{where}: images of {error}") from error
    images = images[:, top : top + down, left : left + across]
    if channels == 3 and shape.channels == 1:
        red, green, blue = (images[..., i].astype(np.uint32) for i in range(3))
        # Pillow's luminance weights, in 1/65536.
        grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
        images = grey.astype(np.uint8)[..., None]
    if (down, across) != (shape.height, shape.width):
        flat = images.reshape(len(images), down, -1).astype(np.float32)
        rows = np.matmul(_area_weights(down, shape.height), flat)
        rows = rows.reshape(len(images), shape.height, across, images.shape[3])
        means = np.matmul(_area_weights(across, shape.width), rows)
        images = (means + np.float32(0.5)).astype(np.uint8)
    return np.broadcast_to(images, (len(images), *shape))


def _area_weights(size: int, new_size: int) -> NDArray[np.float32]:
    """Return the share of each old pixel in each new one: (new_size, size), rows sum to 1."""
    ends = np.arange(new_size + 1) * (size / new_size)
    starts = np.arange(size)
    covered = np.minimum(ends[1:, None], starts + 1) - np.maximum(ends[:-1, None], starts)
    covered = covered.clip(0)
    weights: NDArray[np.float32] = (covered / covered.sum(1, keepdims=True)).astype(np.float32)
    return weights


def to_network(images: Tensor, image_range: tuple[float, float], dtype: torch.dtype) -> Tensor:
    """Scale images to an experiment's range.

    Args:
        images: uint8 (B, height, width, channels).
        image_range: what 0 and 255 become.
        dtype: floating point.

    Returns:
        (B, channels, height, width), channels_last.
    """
    scaled = images.permute(0, 3, 1, 2).to(dtype).div_(255.0)
    low, high = image_range
    return scaled if (low, high) == (0.0, 1.0) else scaled.mul_(high - low).add_(low)


def to_bytes(images: Tensor, image_range: tuple[float, float]) -> Tensor:
    """Convert a generator's output to uint8 (B, height, width, channels), on the same device."""
    low, high = image_range
    scaled = (images - low) * (255.0 / (high - low))
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
