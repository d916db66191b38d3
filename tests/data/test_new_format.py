"""A new dataset format is one file with `detect`, `read` and a call of `register`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastinfogan import experiments
from fastinfogan.data import ImageSet, formats, open_image_set
from fastinfogan.errors import InputError

MNIST = experiments.get("mnist")

CONTRIBUTING = Path(__file__).parents[2] / "docs" / "contributing.md"


def recipe() -> str:
    """The code that docs/contributing.md shows for a new format."""
    section = CONTRIBUTING.read_text().partition("## Add a dataset format")[2]
    return section.partition("```python\n")[2].partition("```")[0]


@pytest.fixture
def raw_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file as it would be added to the folder of formats."""
    registered = {each.name: each for each in formats.all_formats()}
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "raw_bytes.py").write_text(recipe())
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "formats")])
    monkeypatch.setattr(formats, "_registered", registered)
    formats._import_all.cache_clear()
    yield
    sys.modules.pop("fastinfogan.data.formats.raw_bytes", None)


@pytest.mark.usefixtures("raw_bytes")
def test_a_new_format_is_one_file(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    images.tofile(tmp_path / "mine.raw")
    for path in (tmp_path / "mine.raw", tmp_path):  # a folder may hold the one set
        found = open_image_set(path, MNIST)
        assert isinstance(found, ImageSet)
        assert np.array_equal(found.images, images)
    assert "a .raw file of bytes" in formats.describe_formats()
    (tmp_path / "mine.raw").write_bytes(bytes(785))
    with pytest.raises(InputError, match="785 bytes, the last image is incomplete"):
        open_image_set(tmp_path / "mine.raw", MNIST)


def test_formats_are_asked_by_priority_and_have_one_name() -> None:
    found = formats.all_formats()
    assert [each.priority for each in found] == sorted(each.priority for each in found)
    assert found[-1].name == "folder"
    assert "raw bytes" not in [each.name for each in found]
    with pytest.raises(ValueError, match="'folder' is registered already"):
        formats.register(found[-1])
