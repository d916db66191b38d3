"""Arrays with known factors: dSprites, 3D Shapes and MPI3D, in .npz or HDF5.

dSprites (Matthey et al. 2017) is dsprites_*.npz with imgs of 0 and 1, latents_values and
latents_classes; its pickled metadata is never read. 3D Shapes (Burgess and Kim 2018) is 3dshapes.h5
with images and labels. MPI3D (Gondal et al. 2019) is an .npz or HDF5 of images alone, in the order
of a grid of factors.
"""

import math
import zipfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.formats import Format, register
from fastinfogan.data.formats.npz import UNREADABLE, NpzArray
from fastinfogan.data.image_set import (
    CropResize,
    Factors,
    ImageSet,
    ImageShape,
    as_images,
    as_labels,
)
from fastinfogan.data.transforms import Images, read_chunks
from fastinfogan.errors import InputError, require

_HDF5_SUFFIXES: Final = (".h5", ".hdf5")
GRIDS: Final = [(6, 6, 2, 3, 3, 40, 40), (4, 4, 2, 3, 3, 40, 40)]
"""Steps of each of MPI3D's factors; the last one changes fastest."""

_DSPRITES = frozenset({"imgs.npy", "latents_values.npy", "latents_classes.npy"})


@dataclass(frozen=True)
class _Factor:
    """Name, number of classes and period of a factor."""

    name: str
    classes: int | None = None
    period: float | None = None


# latents_values also has the colour, always white.
_SPRITES = (
    _Factor("shape", 3),
    _Factor("scale"),
    _Factor("rotation", period=360),
    _Factor("x"),
    _Factor("y"),
)
_SHAPES = (
    _Factor("floor hue", period=1),
    _Factor("wall hue", period=1),
    _Factor("object hue", period=1),
    _Factor("scale"),
    _Factor("shape", 4),
    _Factor("orientation"),  # -30 to 30 degrees
)
_MPI3D = ("object colour", "object shape", "object size", "camera height", "background colour")
_AXES = ("horizontal axis", "vertical axis")


def detect_npz(path: Path) -> bool:
    """Return whether a path is dSprites' or MPI3D's .npz."""
    if path.suffix != ".npz":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if names != {"images.npy"}:
                return names >= _DSPRITES
            with closing(NpzArray(archive, "images")) as images:
                return _grid(images.shape) is not None
    except UNREADABLE:
        return False


def read_npz(path: Path, shape: ImageShape, on_bad_image: OnBadImage = "fail") -> ImageSet:
    """Read dSprites or MPI3D.

    Raises:
        InputError: damaged, pickled, or images that cannot be resized.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if set(archive.namelist()) >= _DSPRITES:
                return _read_dsprites(archive, path, shape)
            with closing(NpzArray(archive, "images")) as array:
                factors = _grid(array.shape)
                return ImageSet(str(path), _read_images(array, path, shape), factors=factors)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path}: not a complete .npz of plain arrays: {error}") from error


def _read_dsprites(archive: zipfile.ZipFile, path: Path, shape: ImageShape) -> ImageSet:
    columns = {}
    for name in ("latents_values", "latents_classes"):
        with closing(NpzArray(archive, name)) as array:
            if len(array.shape) != 2 or array.shape[1] != 6 or array.dtype.kind not in "iuf":
                raise InputError(
                    f"{path}: {name} must be numbers (N, 6), it is {array.dtype} {array.shape}"
                )
            columns[name] = array.next(array.shape[0])
    values = columns["latents_values"][:, 1:].astype(np.float32)
    values[:, 0] = columns["latents_classes"][:, 1]
    values[:, 2] = np.rad2deg(values[:, 2])
    with closing(NpzArray(archive, "imgs")) as array:
        images = _read_images(array, path, shape, bits=True)
    return ImageSet(str(path), images, factors=_factors(_SPRITES, values))


def _read_images(array: NpzArray, path: Path, shape: ImageShape, *, bits: bool = False) -> Images:
    def read(first: int, last: int) -> Images:
        part = as_images(array.next(last - first), path)
        if not bits:
            return part
        if part.max() > 1:
            raise InputError(f"{path}: imgs must be 0 or 1, there is {part.max()}")
        return part * np.uint8(255)

    count = array.shape[0] if array.shape else 0
    return read_chunks(count, read, CropResize(shape), path)


def detect_hdf5(path: Path) -> bool:
    """Return whether a path is named as an HDF5 file."""
    return path.suffix in _HDF5_SUFFIXES and path.is_file()


def read_hdf5(path: Path, shape: ImageShape, on_bad_image: OnBadImage = "fail") -> ImageSet:
    """Read images, and labels if there are any, of an HDF5 file.

    Six labels per image are 3D Shapes' factors; as many images as one of MPI3D's grids have that
    grid's factors.

    Raises:
        InputError: h5py is not installed, the file is damaged, has no images, or they cannot be
            resized.
    """
    h5py = require("h5py", extra="hdf5", purpose=f"{path}: reading HDF5")
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: file[name] for name in ("images", "labels") if name in file}
            if not all(isinstance(array, h5py.Dataset) for array in arrays.values()):
                raise ValueError("images and labels must be arrays")
            if "images" not in arrays:
                found = ", ".join(sorted(file)) or "nothing"
                raise InputError(f"{path}: holds {found}; it must hold an array 'images'")
            return _of_arrays(arrays["images"], arrays.get("labels"), path, shape)
    except InputError:
        raise
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a complete HDF5 file: {reason}") from error


def _of_arrays(stored: Any, labels: Any, path: Path, shape: ImageShape) -> ImageSet:  # noqa: ANN401
    count = stored.shape[0] if stored.shape else 0
    factors, classes = _grid(stored.shape), None
    if labels is not None:
        values = np.asarray(labels[()])
        if values.ndim == 2 and values.shape[1] == len(_SHAPES) and values.dtype.kind in "iuf":
            factors = _factors(_SHAPES, values.astype(np.float32))
        else:
            classes = as_labels(values, path)
    images = read_chunks(
        count, lambda first, last: as_images(stored[first:last], path), CropResize(shape), path
    )
    return ImageSet(str(path), images, classes, factors=factors)


def _grid(shape: tuple[int, ...]) -> Factors | None:
    """Return MPI3D's factors, recognised by the number of images."""
    for grid in GRIDS:
        if len(shape) == 4 and shape[0] == math.prod(grid):
            steps = np.indices(grid, np.float32).reshape(len(grid), -1).T
            with_classes = [_Factor(n, c) for n, c in zip(_MPI3D, grid, strict=False)]
            return _factors((*with_classes, *map(_Factor, _AXES)), np.ascontiguousarray(steps))
    return None


def _factors(factors: tuple[_Factor, ...], values: NDArray[np.float32]) -> Factors:
    return Factors(
        tuple(each.name for each in factors),
        values,
        tuple(each.classes for each in factors),
        tuple(each.period for each in factors),
    )


register(Format("dSprites", "dSprites or MPI3D (.npz)", detect_npz, read_npz, priority=50))
register(Format("HDF5", "3D Shapes or MPI3D (.h5)", detect_hdf5, read_hdf5, priority=60))
