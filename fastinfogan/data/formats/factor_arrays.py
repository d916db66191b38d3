"""Sets of arrays whose factors are known: dSprites, 3D Shapes and MPI3D, in .npz or HDF5.

dSprites (Matthey et al. 2017) is dsprites_*.npz with imgs of 0 and 1, latents_values and
latents_classes; its pickled metadata is never looked at. 3D Shapes (Burgess and Kim 2018) is
3dshapes.h5 with images and labels. MPI3D (Gondal et al. 2019) is an .npz or HDF5 of images alone,
in the order of a grid of factors.
"""

import math
import zipfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.arrays import Images, NpzArray, read_in_parts
from fastinfogan.data.decoders.geometry import recipe
from fastinfogan.data.formats.npz import UNREADABLE
from fastinfogan.data.image_set import Factors, ImageSet, ImageShape, as_labels, pixels
from fastinfogan.errors import InputError

HDF5_SUFFIXES: Final = frozenset({".h5", ".hdf5"})
GRIDS: Final = [(6, 6, 2, 3, 3, 40, 40), (4, 4, 2, 3, 3, 40, 40)]
"""How many steps each of MPI3D's factors has; the last one changes fastest."""

_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)
_DSPRITES = frozenset({"imgs.npy", "latents_values.npy", "latents_classes.npy"})


@dataclass(frozen=True)
class _Named:
    """A factor: its classes and its period, None where it has none."""

    name: str
    classes: int | None = None
    period: float | None = None


# latents_values also has the colour, which is always white.
_SPRITES = (
    _Named("shape", 3),
    _Named("scale"),
    _Named("rotation", period=360),
    _Named("x"),
    _Named("y"),
)
_SHAPES = (
    _Named("floor hue", period=1),
    _Named("wall hue", period=1),
    _Named("object hue", period=1),
    _Named("scale"),
    _Named("shape", 4),
    _Named("orientation"),  # -30 to 30 degrees
)
_MPI3D = ("object colour", "object shape", "object size", "camera height", "background colour")
_AXES = ("horizontal axis", "vertical axis")


def read_npz(path: Path, shape: ImageShape) -> ImageSet | None:
    """Read dSprites or MPI3D; None if an archive is neither.

    Raises:
        InputError: damaged, pickled, or images that cannot be made to fit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if names >= _DSPRITES:
                return _read_dsprites(archive, path, shape)
            if names == {"images.npy"}:
                with closing(NpzArray(archive, "images")) as member:
                    factors = _grid(member.shape)
                    if factors:
                        images = _by_member(member, path, shape)
                        return ImageSet(str(path), images, factors=factors)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path}: not a whole .npz of plain arrays: {error}") from error
    return None


def _read_dsprites(archive: zipfile.ZipFile, path: Path, shape: ImageShape) -> ImageSet:
    columns = {}
    for name in ("latents_values", "latents_classes"):
        with closing(NpzArray(archive, name)) as member:
            if len(member.shape) != 2 or member.shape[1] != 6 or member.dtype.kind not in "iuf":
                raise InputError(
                    f"{path}: {name} must be numbers (N, 6), it is {member.dtype} {member.shape}"
                )
            columns[name] = member.next(member.shape[0])
    values = columns["latents_values"][:, 1:].astype(np.float32)
    values[:, 0] = columns["latents_classes"][:, 1]
    values[:, 2] = np.rad2deg(values[:, 2])
    with closing(NpzArray(archive, "imgs")) as member:
        images = _by_member(member, path, shape, bits=True)
    return ImageSet(str(path), images, factors=_factors(_SPRITES, values))


def _by_member(member: NpzArray, path: Path, shape: ImageShape, *, bits: bool = False) -> Images:
    def read(first: int, last: int) -> Images:
        part = pixels(member.next(last - first), path)
        if not bits:
            return part
        if part.max() > 1:
            raise InputError(f"{path}: imgs of 0 and 1 are expected, there is {part.max()}")
        return part * np.uint8(255)

    count = member.shape[0] if member.shape else 0
    return read_in_parts(count, read, recipe("plain", shape), path)


def read_hdf5(path: Path, shape: ImageShape) -> ImageSet:
    """Read images, and labels if there are any, of an HDF5 file.

    Six labels an image are 3D Shapes' factors; a number of images that is one of MPI3D's grids
    tells their factors.

    Raises:
        InputError: h5py is not installed, the file is damaged, has no images, or they cannot be
            made to fit.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{path}: HDF5 is read by h5py, which cannot be imported ({error}); "
            "install fastinfogan[hdf5]"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: file[name] for name in ("images", "labels") if name in file}
            if not all(isinstance(array, h5py.Dataset) for array in arrays.values()):
                raise ValueError("images and labels are no arrays")
            if "images" not in arrays:
                found = ", ".join(sorted(file)) or "nothing"
                raise InputError(f"{path}: holds {found}; an array 'images' is looked for")
            return _of_arrays(arrays["images"], arrays.get("labels"), path, shape)
    except InputError:
        raise
    except _HDF5_ERRORS as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a whole HDF5 file: {reason}") from error


def _of_arrays(stored: Any, labels: Any, path: Path, shape: ImageShape) -> ImageSet:  # noqa: ANN401
    count = stored.shape[0] if stored.shape else 0
    factors, classes = _grid(stored.shape), None
    if labels is not None:
        values = np.asarray(labels[()])
        if values.ndim == 2 and values.shape[1] == len(_SHAPES) and values.dtype.kind in "iuf":
            factors = _factors(_SHAPES, values.astype(np.float32))
        else:
            classes = as_labels(values, path)
    images = read_in_parts(
        count, lambda first, last: pixels(stored[first:last], path), recipe("plain", shape), path
    )
    return ImageSet(str(path), images, classes, factors=factors)


def _grid(shape: tuple[int, ...]) -> Factors | None:
    """MPI3D's factors, told by how many images there are."""
    for grid in GRIDS:
        if len(shape) == 4 and shape[0] == math.prod(grid):
            steps = np.indices(grid, np.float32).reshape(len(grid), -1).T
            with_classes = [_Named(n, c) for n, c in zip(_MPI3D, grid, strict=False)]
            return _factors((*with_classes, *map(_Named, _AXES)), np.ascontiguousarray(steps))
    return None


def _factors(named: tuple[_Named, ...], values: NDArray[np.float32]) -> Factors:
    return Factors(
        tuple(each.name for each in named),
        values,
        tuple(each.classes for each in named),
        tuple(each.period for each in named),
    )
