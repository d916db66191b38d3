"""MNIST's IDX files, gzipped or not: one of images, or the usual four in a folder."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.formats import Format, register
from fastinfogan.data.image_set import ImageSet, ImageShape, as_images, as_labels
from fastinfogan.errors import InputError

_GZIP = b"\x1f\x8b"
_UBYTE = 8  # the type code of unsigned bytes, the only one MNIST uses


def detect(path: Path) -> bool:
    """Return whether a folder has images for training, or a file starts like IDX or is named so."""
    if path.is_dir():
        return _image_file(path, "train") is not None
    if not path.is_file():
        return False
    if "idx" in path.name and path.name.removesuffix(".gz").endswith("ubyte"):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(3)
        if start[:2] == _GZIP:
            with gzip.open(path) as file:
                start = file.read(3)
    except (OSError, EOFError, zlib.error):
        return False
    return start == bytes([0, 0, _UBYTE])


def _image_file(folder: Path, part: str) -> Path | None:
    """Return the folder's IDX file of images of "train" or "t10k"."""
    found = [p for p in sorted(folder.glob(f"{part}-images*")) if p.is_file() and detect(p)]
    return found[0] if found else None


def _read_array(path: Path, rank: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    Args:
        path: the file; gzipped if it starts like gzip.
        rank: number of dimensions, 3 for images and 1 for labels.

    Raises:
        InputError: unreadable, another magic number, or a length that its header does not state.
    """
    try:
        data = path.read_bytes()
        if data[:2] == _GZIP:
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    magic = bytes([0, 0, _UBYTE, rank])
    if data[:4] != magic:
        raise InputError(
            f"{path}: an IDX file of {rank}-dimensional bytes starts with {magic.hex(' ')}, "
            f"this one with {data[:4].hex(' ') or 'nothing'}"
        )
    header = 4 + 4 * rank
    if len(data) < header:
        raise InputError(f"{path}: truncated in its header, {len(data)} bytes of {header}")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, 4))
    announced = header + int(np.prod(shape, dtype=object))
    if len(data) != announced:
        what = "truncated" if len(data) < announced else "too long"
        raise InputError(f"{path}: {what}, {len(data)} bytes where its header says {announced}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read(path: Path, shape: ImageShape, on_bad_image: OnBadImage = "fail") -> ImageSet:
    """Read a file of images and the labels beside it, or a folder of the usual four files.

    Raises:
        InputError: no images, or a file is damaged.
    """
    if path.is_dir():
        train, test = _image_file(path, "train"), _image_file(path, "t10k")
        if train is None:
            raise InputError(f"{path}: no train-images-idx3-ubyte, gzipped or not, in this folder")
        source = _read_one(train)
        held_out = _read_one(test) if test else None
        return ImageSet(str(path), source.images, source.labels, held_out)
    return _read_one(path)


def _read_one(images: Path) -> ImageSet:
    array = as_images(_read_array(images, 3), images)
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    if name == images.name:
        return ImageSet(str(images), array)
    candidates = [images.with_name(n) for n in (name, name.removesuffix(".gz"), name + ".gz")]
    labels = next((c for c in candidates if c.is_file()), None)
    return ImageSet(
        str(images), array, as_labels(_read_array(labels, 1), labels) if labels else None
    )


register(Format("IDX", "MNIST's IDX files", detect, read, priority=10))
