"""Images in a NumPy archive: images and labels, or Keras's x_train, y_train, x_test, y_test."""

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.formats import Format, register
from fastinfogan.data.image_set import ImageSet, ImageShape, as_images, as_labels
from fastinfogan.errors import InputError

# What NumPy, scipy and h5py raise on damaged files.
UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    MemoryError,
    RuntimeError,  # encrypted, of a newer format, or packed in a way that zipfile does not know
    SyntaxError,
    tokenize.TokenError,  # numpy parses an array's header as Python
    zipfile.BadZipFile,
    zlib.error,
)
_LAYOUTS = (("images", "labels"), ("x_train", "y_train"))
_TEST_LAYOUTS = (("test_images", "test_labels"), ("x_test", "y_test"))


class NpzArray:
    """An array in an .npz, read from first row to last without loading it whole.

    Args:
        archive: the open .npz.
        name: of the array.

    Attributes:
        shape, dtype: of the array.

    Raises:
        ValueError: pickled objects or Fortran order; also what `zipfile` and NumPy raise on a
            damaged archive, see `UNREADABLE`.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._file: IO[bytes] = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(self._file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"{name} is of version {version} of NumPy's format")
        self.shape: tuple[int, ...]
        self.dtype: np.dtype[Any]
        self.shape, fortran_order, self.dtype = readers[version](self._file)
        if self.dtype.hasobject:
            raise ValueError(f"{name} holds pickled objects, which are refused")
        if fortran_order and len(self.shape) > 1:
            raise ValueError(f"{name} is stored in Fortran order")

    def next(self, count: int) -> NDArray[Any]:
        """Read the next rows.

        Raises:
            ValueError: the array ends before them; others as above.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize * count
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("an array ends before its last row")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def close(self) -> None:
        """Close the array; reading beyond its end compares the checksum.

        Raises:
            zipfile.BadZipFile: the checksum differs.
        """
        self._file.read(1)
        self._file.close()


def detect(path: Path) -> bool:
    """Return whether a path is an .npz file."""
    return path.suffix == ".npz" and path.is_file()


def read(path: Path, shape: ImageShape, on_bad_image: OnBadImage = "fail") -> ImageSet:
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
        raise InputError(f"{path}: not a complete .npz of plain arrays: {error}") from error
    # Members of a zip that are not arrays come back as bytes.
    arrays = {name: array for name, array in every.items() if isinstance(array, np.ndarray)}
    source = _find(arrays, _LAYOUTS, path)
    if source is None and len(arrays) == 1:
        source = ImageSet(str(path), as_images(next(iter(arrays.values())), path))
    if source is None:
        raise InputError(
            f"{path}: holds {', '.join(arrays) or 'nothing'}; images must be named 'images' or "
            "'x_train', or be the only array"
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
                as_images(arrays[images], path),
                None if found is None else as_labels(found, path),
            )
    return None


register(Format("NumPy", "any .npz of images", detect, read, priority=70))
