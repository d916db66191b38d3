"""SVHN's cropped digits: train_32x32.mat (MATLAB 5), and test_32x32.mat if it lies beside it."""

import zlib
from pathlib import Path

import numpy as np

from fastinfogan.data.source import Source, as_labels, pixels
from fastinfogan.errors import InputError


def read(path: Path) -> Source:
    """Read a .mat file with X, uint8 (32, 32, 3, N), and y, (N, 1), in which 10 stands for 0.

    Raises:
        InputError: not a MATLAB 5 file, damaged, or without X and y of these shapes.
    """
    source = _read_one(path)
    test = path.with_name(path.name.replace("train", "test"))
    if test != path and test.is_file():
        return Source(source.name, source.images, source.labels, _read_one(test))
    return source


def _read_one(path: Path) -> Source:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        arrays = loadmat(path, variable_names=["X", "y"])
    # What scipy's reader ends in on files cut short and with flipped bits; it names no file.
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        NameError,
        NotImplementedError,  # MATLAB 7.3
        MemoryError,
        OverflowError,
        MatReadError,
        zlib.error,
    ) as error:
        raise InputError(f"{path}: not a whole MATLAB 5 file: {error}") from error
    if "X" not in arrays:
        raise InputError(f"{path}: holds no array X, (32, 32, 3, N), as SVHN's files do")
    images = arrays["X"]
    if images.ndim != 4:
        raise InputError(f"{path}: X must be (height, width, channels, N), it is {images.shape}")
    labels = as_labels(arrays["y"], path) if "y" in arrays else None
    if labels is not None:
        labels = np.where(labels == 10, 0, labels)
    return Source(str(path), pixels(images.transpose(3, 0, 1, 2), path), labels)
