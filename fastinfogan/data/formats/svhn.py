"""SVHN's cropped digits: train_32x32.mat or extra_32x32.mat (MATLAB 5), with test_32x32.mat."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.formats import Format, register
from fastinfogan.data.formats.npz import UNREADABLE
from fastinfogan.data.image_set import CropResize, ImageSet, ImageShape, as_images, as_labels
from fastinfogan.data.transforms import read_chunks
from fastinfogan.errors import InputError

_FILES = ("train_32x32.mat", "extra_32x32.mat")  # in a folder, the first one there

_HEADER, _START = 128, 512  # of the file; of an element, more than flags, shape and name can take
_MATRIX_CLASS = range(6, 16)  # of numbers: flags, shape, name, values
_TYPES = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14, 15, 16, 17, 18})
_COMPRESSED = 15
_COMPLEX = 0x800


def _find(path: Path) -> Path | None:
    candidates = [path / name for name in _FILES] if path.is_dir() else [path]
    return next((c for c in candidates if c.suffix == ".mat" and c.is_file()), None)


def detect(path: Path) -> bool:
    """Return whether a path is a .mat file, or a folder with one of SVHN's."""
    return _find(path) is not None


def read(path: Path, shape: ImageShape, on_bad_image: OnBadImage = "fail") -> ImageSet:
    """Read X, uint8 (32, 32, 3, N), and y, (N, 1), in which 10 stands for 0, and resize the images.

    Raises:
        InputError: not a MATLAB 5 file, damaged, or without X and y of these shapes.
    """
    path = _find(path) or path
    source = _read_one(path, shape)
    test = path.with_name(re.sub("train|extra", "test", path.name))
    if test != path and test.is_file():
        return ImageSet(source.name, source.images, source.labels, _read_one(test, shape))
    return source


def _read_one(path: Path, shape: ImageShape) -> ImageSet:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        _require_known_types(path)
        arrays = loadmat(path, variable_names=["X", "y"])
    except (*UNREADABLE, ArithmeticError, NameError, MatReadError) as error:
        raise InputError(f"{path}: not a complete MATLAB 5 file: {error}") from error
    if "X" not in arrays:
        raise InputError(f"{path}: holds no array X, (32, 32, 3, N)")
    images = arrays["X"]
    if images.ndim != 4:
        raise InputError(f"{path}: X must be (height, width, channels, N), it is {images.shape}")
    labels = as_labels(arrays["y"], path) if "y" in arrays else None
    if labels is not None:
        labels = np.where(labels == 10, 0, labels)
    every = as_images(images.transpose(3, 0, 1, 2), path)
    if every.shape[1:] != shape:
        every = read_chunks(
            len(every), lambda first, last: every[first:last], CropResize(shape), path
        )
    return ImageSet(str(path), every, labels)


def _require_known_types(path: Path) -> None:
    """Check the type codes of a file's matrices: unknown ones crash scipy.

    Raises:
        ValueError: one is unknown.
        OSError: the file cannot be read.
        zlib.error: an element is damaged.
    """
    with path.open("rb") as file:
        order = {b"IM": "<", b"MI": ">"}.get(file.read(_HEADER)[126:])
        while order and len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            start = file.read(min(size, _START))
            file.seek(size - len(start), 1)
            if kind == _COMPRESSED:
                start = zlib.decompressobj().decompress(start, _START)[8:]
            _check_types(start, order)


def _check_types(start: bytes, order: str) -> None:
    place, parts = 0, 3
    for part in range(4):
        if part == parts:
            return
        if len(start) < place + 8:
            raise ValueError("an element is cut short")
        kind, size = struct.unpack_from(f"{order}II", start, place)
        small = kind >> 16  # up to four bytes, packed into the tag
        if (kind & 0xFFFF if small else kind) not in _TYPES:
            raise ValueError(f"unknown type code {kind}")
        if part == 0:
            (flags,) = struct.unpack_from(f"{order}I", start.ljust(12, b"\0"), 8)
            if flags & _COMPLEX:  # its imaginary part would have a type of its own
                raise ValueError("an array of complex numbers")
            parts = 4 if flags & 0xFF in _MATRIX_CLASS else 3
        place += 8 if small else 8 + -(-size // 8) * 8


register(Format("SVHN", "SVHN's train_32x32.mat", detect, read, priority=20))
