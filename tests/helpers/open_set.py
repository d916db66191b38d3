"""Open image sets, and the errors where they cannot be opened."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastinfogan import experiments
from fastinfogan.data import ImageSet, open_image_set
from fastinfogan.data.decoders.pillow import PillowDecoder
from fastinfogan.data.image_set import EncodedImageSet
from fastinfogan.errors import InputError

MNIST = experiments.get("mnist")


def encoded(path: Path, experiment: experiments.Experiment, **options: str) -> EncodedImageSet:
    source = open_image_set(path, experiment, **options)
    assert isinstance(source, EncodedImageSet)
    return source


def in_memory(path: Path, experiment: experiments.Experiment) -> ImageSet:
    source = open_image_set(path, experiment)
    assert isinstance(source, ImageSet)
    return source


def message(path: Path | None, experiment: experiments.Experiment = MNIST) -> str:
    with pytest.raises(InputError) as caught:
        open_image_set(path, experiment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def decoded(source: EncodedImageSet) -> NDArray[np.uint8]:
    (batch,) = PillowDecoder(source, 2).batches([np.arange(len(source))])
    assert not batch.bad
    return batch.images


def names(source: EncodedImageSet | None) -> list[str]:
    assert source is not None
    return [file.name for file in source.files]
