"""SVHN's cropped digits: train_32x32.mat (MATLAB 5), and test_32x32.mat if it lies beside it."""

from pathlib import Path

import numpy as np

from fastinfogan.data.source import Source, pixels
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

    try:
        arrays = loadmat(path, variable_names=["X", "y"])
    # scipy's reader ends in whatever its parser trips over, and names no file.
    except Exception as error:
        raise InputError(f"{path}: not a whole MATLAB 5 file: {error}") from error
    if "X" not in arrays:
        raise InputError(f"{path}: holds no array X, (32, 32, 3, N), as SVHN's files do")
    images = arrays["X"]
    if images.ndim != 4:
        raise InputError(f"{path}: X must be (height, width, channels, N), it is {images.shape}")
    labels = arrays["y"].reshape(-1).astype(np.int64) % 10 if "y" in arrays else None
    return Source(str(path), pixels(images.transpose(3, 0, 1, 2), path), labels)
