"""Open the image set that an experiment trains on."""

from pathlib import Path

import numpy as np

from fastinfogan.data import synthetic
from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.formats import describe_formats, read_path
from fastinfogan.data.image_set import EncodedImageSet, ImageSet, ImageShape
from fastinfogan.errors import InputError
from fastinfogan.experiments import EXPERIMENTS, Experiment

_DIGITS = Path(__file__).with_name("digits-5000.npz")


def open_image_set(
    path: Path | None,
    experiment: Experiment,
    progress: synthetic.Progress | None = None,
    on_bad_image: OnBadImage = "fail",
) -> ImageSet | EncodedImageSet:
    """Open a set of images that fits an experiment.

    Args:
        path: a file or folder in a registered format, see `fastinfogan.data.formats`; None for the
            embedded digits, or the set that is rendered for the experiment.
        experiment: whose image shape is needed. Encoded images are cropped and resized to it.
        progress: called with the images rendered so far and their number.
        on_bad_image: "skip" leaves out folders that cannot be read, and the damaged part of a tar.
            Images themselves are checked when they are decoded.

    Raises:
        InputError: no such path, an unknown or damaged format, or images of another shape.
    """
    shape = ImageShape(experiment.height, experiment.width, experiment.channels)
    entry = EXPERIMENTS.get(experiment.name)
    default = entry.data if entry else None
    images: ImageSet | EncodedImageSet
    if path is not None:
        images = read_path(path, shape, on_bad_image)
    elif default == "digits":
        images = embedded_digits()
    elif default is not None:
        images = synthetic.load(default, progress=progress)
    else:
        raise InputError(
            f"{experiment.name} has no embedded images; give the path of {describe_formats()}"
        )
    for part in (images, images.test):
        if isinstance(part, ImageSet):
            part.require(shape)
    return images


def embedded_digits() -> ImageSet:
    """Read 5,000 images of MNIST, 500 a class and sorted by class, with their labels.

    Source and licence: digits-5000.txt beside the file.
    """
    with np.load(_DIGITS) as arrays:
        return ImageSet(
            "the embedded MNIST digits", arrays["images"], arrays["labels"].astype(np.int64)
        )
