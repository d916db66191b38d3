"""One way in: which format a path is, and what an experiment trains on when no path is given."""

from pathlib import Path

from fastinfogan.data import synthetic
from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.formats import (
    aubry_chairs,
    celeba,
    factor_arrays,
    folder,
    idx,
    npz,
    svhn,
    webdataset,
)
from fastinfogan.data.formats.digits import embedded_digits
from fastinfogan.data.image_set import EncodedImageSet, ImageSet, ImageShape
from fastinfogan.errors import InputError
from fastinfogan.experiments import EXPERIMENTS, Experiment

_WANTED = (
    "MNIST's IDX files, SVHN's train_32x32.mat, CelebA's img_align_celeba, rendered_chairs, "
    "dSprites or MPI3D (.npz), 3D Shapes or MPI3D (.h5), any .npz of images, .tar files of "
    "pictures (shard-{000..009}.tar) or a folder of pictures"
)
_ARRAYS = factor_arrays.HDF5_SUFFIXES | {".npz"}


def open_image_set(
    path: Path | None,
    experiment: Experiment,
    progress: synthetic.Progress | None = None,
    damaged: OnBadImage = "fail",
) -> ImageSet | EncodedImageSet:
    """Read a set of images that fits an experiment.

    Args:
        path: a file or folder in one of the formats of this room; None for the embedded digits, or
            for the set that is rendered for the experiment.
        experiment: whose height, width and channels the images must have. Pictures in a folder
            are cropped and resized to it.
        progress: told how far it is while a set is rendered.
        damaged: "skip" leaves out folders that cannot be read, and takes the whole pictures of a
            tar that is damaged. The pictures themselves are looked at when they are decoded.

    Raises:
        InputError: nothing there, an unknown or damaged format, or images that do not fit.
    """
    shape = ImageShape(experiment.height, experiment.width, experiment.channels)
    source: ImageSet | EncodedImageSet
    if path is None:
        known = EXPERIMENTS.get(experiment.name)
        default = known.data if known else None
        if default is None:
            raise InputError(f"{experiment.name} has no embedded images; give `data`: {_WANTED}")
        if default == "digits":
            source = embedded_digits()
        else:
            source = synthetic.open(default, progress=progress)
    else:
        source = _read(path, shape, damaged)
    for part in (source, source.test):
        if isinstance(part, ImageSet):
            part.require(shape)
    return source


def _read(path: Path, shape: ImageShape, damaged: OnBadImage) -> ImageSet | EncodedImageSet:
    if path.is_dir():
        return _read_folder(path, shape, damaged)
    tars = webdataset.shards(path)
    if tars:
        return webdataset.read(path, tars, shape, damaged)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; `data` takes {_WANTED}")
    if path.suffix == ".mat":
        return svhn.read(path, shape)
    if path.suffix == ".npz":
        return factor_arrays.read_npz(path, shape) or npz.read(path)
    if path.suffix in factor_arrays.HDF5_SUFFIXES:
        return factor_arrays.read_hdf5(path, shape)
    if idx.is_idx(path):
        return idx.read(path)
    raise InputError(f"{path}: of no format known here; `data` takes {_WANTED}")


def _read_folder(path: Path, shape: ImageShape, damaged: OnBadImage) -> ImageSet | EncodedImageSet:
    if idx.image_file(path, "train"):
        return idx.read(path)
    for name in svhn.IN_FOLDER:
        if (path / name).is_file():
            return svhn.read(path / name, shape)
    if celeba.find(path):
        return celeba.read(path, shape, damaged)
    if aubry_chairs.find(path):
        return aubry_chairs.read(path, shape, damaged)
    try:
        return folder.read(path, shape, damaged)
    except folder.NoPicturesError:
        tars = webdataset.shards(path)
        if tars:
            return webdataset.read(path, tars, shape, damaged)
        arrays = [p for p in sorted(path.iterdir()) if p.suffix in _ARRAYS and p.is_file()]
        if len(arrays) > 1:
            names = ", ".join(file.name for file in arrays)
            raise InputError(f"{path}: holds several sets, {names}; give one as `data`") from None
        if not arrays:
            raise
    return _read(arrays[0], shape, damaged)
