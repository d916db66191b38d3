"""One way in: which format a path is, and what an experiment trains on when no path is given."""

from pathlib import Path

from fastinfogan.data import celeba, chairs, folder, idx, npz, rendered, svhn
from fastinfogan.data.digits import embedded_digits
from fastinfogan.data.quarantine import OnBadImage
from fastinfogan.data.source import Encoded, ImageShape, Source
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment

_WANTED = "MNIST IDX files, SVHN's train_32x32.mat, an .npz or a folder of pictures"


def open_source(
    path: Path | None,
    experiment: Experiment,
    progress: rendered.Progress | None = None,
    damaged: OnBadImage = "fail",
) -> Source | Encoded:
    """Read a set of images that fits an experiment.

    Args:
        path: a file or folder in one of the formats of this room; None for the embedded digits, or
            for the set that is rendered for the experiment.
        experiment: whose height, width and channels the images must have. Pictures in a folder
            are cropped and resized to it.
        progress: told how far it is while a set is rendered.
        damaged: "skip" leaves out folders that cannot be read; pictures are looked at later, when
            they are decoded.

    Raises:
        InputError: nothing there, an unknown or damaged format, or images that do not fit.
    """
    shape = ImageShape(experiment.height, experiment.width, experiment.channels)
    source: Source | Encoded
    if path is None:
        if experiment.name in rendered.OF_EXPERIMENT:
            name = rendered.OF_EXPERIMENT[experiment.name]
            source = rendered.open(name, progress=progress)
        elif experiment.name == "mnist":
            source = embedded_digits()
        else:
            raise InputError(
                f"{experiment.name} has no embedded images; give --data PATH: {_WANTED}"
            )
    else:
        source = _read(path, shape, damaged)
    for part in (source, source.test):
        if isinstance(part, Source):
            part.require(shape)
    return source


def _read(path: Path, shape: ImageShape, damaged: OnBadImage) -> Source | Encoded:
    if path.is_dir():
        if idx.image_file(path, "train"):
            return idx.read(path)
        if (path / "train_32x32.mat").is_file():
            return svhn.read(path / "train_32x32.mat")
        if celeba.find(path):
            return celeba.read(path, shape, damaged)
        if chairs.find(path):
            return chairs.read(path, shape, damaged)
        return folder.read(path, shape, damaged)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; --data takes {_WANTED}")
    if path.suffix == ".mat":
        return svhn.read(path)
    if path.suffix == ".npz":
        return npz.read(path)
    if idx.is_idx(path):
        return idx.read(path)
    raise InputError(f"{path}: of no format known here; --data takes {_WANTED}")
