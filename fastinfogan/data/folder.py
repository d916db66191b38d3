"""Any folder of pictures, its subfolders included, in the order of their names."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastinfogan.data.source import ImageShape, Source
from fastinfogan.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
_GREY_MODES = frozenset({"1", "L"})
_COLOUR_MODES = frozenset({"RGB", "P"})


def read(path: Path, shape: ImageShape) -> Source:
    """Decode every picture: the largest centred crop of the right proportions, resized.

    Colour becomes grey where grey is needed; grey does not become colour.

    Raises:
        InputError: no pictures, one that cannot be decoded, or one whose channels do not fit.
    """
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise InputError(
            f"{path}: no pictures in this folder (looked for {', '.join(sorted(SUFFIXES))})"
        )
    images = np.empty((len(files), *shape), np.uint8)
    for place, file in zip(images, files, strict=True):
        place[:] = decode(file, shape)
    return Source(str(path), images)


def decode(file: Path, shape: ImageShape) -> NDArray[np.uint8]:
    """Decode one picture to uint8 (height, width, channels), upright by its EXIF tag.

    Raises:
        InputError: it cannot be decoded, or its channels do not fit.
    """
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: cannot be decoded as a picture: {error}") from error
    fits = picture.mode in _COLOUR_MODES or (picture.mode in _GREY_MODES and shape.channels == 1)
    if not fits:
        wanted = "grey or RGB" if shape.channels == 1 else "RGB"
        raise InputError(f"{file}: {wanted} is needed, this picture's mode is {picture.mode}")
    if picture.mode == "P":
        picture = picture.convert("RGB")
    picture = picture.convert("L" if shape.channels == 1 else "RGB")
    size = (shape.width, shape.height)
    if picture.size != size:
        # Cropped before it is resized, lest the filter reach for pixels outside the crop.
        picture = picture.crop(_centred(picture.size, size)).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture, np.uint8).reshape(shape)


def _centred(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest centred box of the target's proportions: left, upper, right, lower."""
    (width, height), (across, down) = size, target
    kept_width = min(width, max(round(height * across / down), 1))
    kept_height = min(height, max(round(width * down / across), 1))
    left, upper = (width - kept_width) // 2, (height - kept_height) // 2
    return left, upper, left + kept_width, upper + kept_height
