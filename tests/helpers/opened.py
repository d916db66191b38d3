"""Opening a set, and what is told where it cannot be opened."""

from pathlib import Path

import pytest

from fastinfogan import experiments
from fastinfogan.data import Source, open_source
from fastinfogan.data.source import Encoded
from fastinfogan.errors import InputError


def encoded(path: Path, experiment: experiments.Experiment, **options: str) -> Encoded:
    source = open_source(path, experiment, **options)
    assert isinstance(source, Encoded)
    return source


def in_memory(path: Path, experiment: experiments.Experiment) -> Source:
    source = open_source(path, experiment)
    assert isinstance(source, Source)
    return source


def message(path: Path, experiment: experiments.Experiment) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, experiment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(source: Encoded | None) -> list[str]:
    assert source is not None
    return [picture.name for picture in source.pictures]
