"""Images in a NumPy archive: images and labels, or Keras's x_train, y_train, x_test, y_test."""

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.image_set import ImageSet, as_labels, pixels
from fastinfogan.errors import InputError

# What np.load ends in on an archive that is damaged, or another's.
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    MemoryError,
    RuntimeError,  # encrypted, or packed in a way that zipfile does not know
    SyntaxError,
    tokenize.TokenError,  # numpy parses an array's header as Python
    zipfile.BadZipFile,
    zlib.error,
)
_LAYOUTS = (("images", "labels"), ("x_train", "y_train"))
_TEST_LAYOUTS = (("test_images", "test_labels"), ("x_test", "y_test"))


def read(path: Path) -> ImageSet:
    """Read an .npz; pickled objects in it are refused.

    Raises:
        InputError: damaged, pickled, or without an array of images under a known name.
    """
    try:
        with zipfile.ZipFile(path) as plain:
            plain.infolist()  # an .npy by another name is no archive, and np.load would read it
        with np.load(path, allow_pickle=False) as archive:
            every = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise InputError(f"{path}: not a whole .npz of plain arrays: {error}") from error
    # What is in a zip and is no array comes back as bytes.
    arrays = {name: array for name, array in every.items() if isinstance(array, np.ndarray)}
    source = _find(arrays, _LAYOUTS, path)
    if source is None and len(arrays) == 1:
        source = ImageSet(str(path), pixels(next(iter(arrays.values())), path))
    if source is None:
        raise InputError(
            f"{path}: holds {', '.join(arrays) or 'nothing'}; images are looked for as 'images' "
            "or 'x_train', or as the only array"
        )
    test = _find(arrays, _TEST_LAYOUTS, path)
    return ImageSet(source.name, source.images, source.labels, test)


def _find(
    arrays: dict[str, NDArray[np.generic]], layouts: tuple[tuple[str, str], ...], path: Path
) -> ImageSet | None:
    for images, labels in layouts:
        if images in arrays:
            found = arrays.get(labels)
            return ImageSet(
                str(path),
                pixels(arrays[images], path),
                None if found is None else as_labels(found, path),
            )
    return None
