"""Subsets of encoded sets, with their labels and factors."""

from dataclasses import replace

import numpy as np
import pytest

from fastinfogan.data import ImageSet
from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.cache.fill import fill_cache_file
from fastinfogan.data.image_set import EncodedImageSet, Factors
from fastinfogan.data.subset import evaluation_subset, subset_indices
from tests.helpers.image_files import RawDecoder, encoded

pytestmark = pytest.mark.usefixtures("empty_cache")

COUNT = 200


@pytest.fixture
def source() -> EncodedImageSet:
    """Each image, its label and its factor are its index; in the test split 100 more."""

    def part(first: int, folder: str) -> EncodedImageSet:
        number = np.arange(first, first + COUNT)
        images = np.zeros((COUNT, 2, 2, 1), np.uint8) + (number % 256).reshape(-1, 1, 1, 1)
        values = number[:, None].astype(np.float32)
        known = Factors(("number",), values, (None,), (None,))
        made = encoded(ImageSet(folder, images.astype(np.uint8), number), folder)
        return replace(made, factors=known)

    return replace(part(0, "train"), test=part(100, "test"))


def taken(source: EncodedImageSet, most: int, reported: list[str]) -> ImageSet:
    return evaluation_subset(RawDecoder(source), RawDecoder, reported.append, most)


def check(found: ImageSet, first: int) -> None:
    assert np.array_equal(found.images[:, 0, 0, 0], found.labels % 256)
    assert np.array_equal(found.factors.values[:, 0], found.labels)
    assert found.labels.min() >= first
    assert found.labels.max() < first + COUNT


def test_a_subset_with_labels_and_factors(source: EncodedImageSet) -> None:
    reported: list[str] = []
    found = taken(source, 50, reported)
    assert len(found) == len(found.test) == 50
    check(found, 0)
    check(found.test, 100)
    assert len(reported) == 2
    assert "train: 50 of 200 images are evaluated" in reported[1]
    again = taken(source, 50, reported)
    assert np.array_equal(found.images, again.images)


@pytest.mark.parametrize("kept", [False, True])
def test_bad_images_are_not_evaluated(source: EncodedImageSet, kept: bool) -> None:
    source.files[7].path.write_bytes(b"")
    if kept:
        fill_cache_file(RawDecoder(source), BadImages("train", COUNT, "skip"), pytest.fail)
    reported: list[str] = []
    found = taken(source, COUNT, reported)
    check(found, 0)
    assert 7 not in found.labels
    assert len(found) == COUNT - 1
    assert any("1 of them cannot be decoded" in each for each in reported)


def test_a_cached_set_is_taken_whole(source: EncodedImageSet) -> None:
    fill_cache_file(RawDecoder(source), BadImages("train", COUNT, "fail"), pytest.fail)
    found = taken(source, 50, [])
    assert len(found) == COUNT
    check(found, 0)


@pytest.mark.parametrize("labels", ["taking turns", "sorted"])
def test_a_subset_has_all_classes(labels: str) -> None:
    number = np.arange(100_000)
    classes = number % 10 if labels == "taking turns" else number // 10_000
    chosen = subset_indices(len(number), 10_000)
    assert len(np.unique(chosen)) == 10_000
    met = np.bincount(classes[chosen])
    assert met.min() > 850
    assert met.max() < 1150
    assert np.array_equal(subset_indices(5, 10), np.arange(5))
