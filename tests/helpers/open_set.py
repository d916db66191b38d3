"""Opening a set, and what is told where it cannot be opened."""

from pathlib import Path

import pytest

from fastinfogan import experiments
from fastinfogan.data import ImageSet, open_image_set
from fastinfogan.data.image_set import EncodedImageSet
from fastinfogan.errors import InputError


def encoded(path: Path, experiment: experiments.Experiment, **options: str) -> EncodedImageSet:
    source = open_image_set(path, experiment, **options)
    assert isinstance(source, EncodedImageSet)
    return source


def in_memory(path: Path, experiment: experiments.Experiment) -> ImageSet:
    source = open_image_set(path, experiment)
    assert isinstance(source, ImageSet)
    return source


def message(path: Path, experiment: experiments.Experiment) -> str:
    with pytest.raises(InputError) as caught:
        open_image_set(path, experiment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(source: EncodedImageSet | None) -> list[str]:
    assert source is not None
    return [picture.name for picture in source.pictures]
