"""The shuffle by formula: a bijection, and as random as a sorted list of random keys."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fastinfogan.errors import InputError
from fastinfogan_kernels import philox


def permutation(count: int, seed: int = 1, epoch: int = 0) -> np.ndarray:
    return philox.permute(np.arange(count), count, philox.shuffle_keys(seed, epoch))


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_it_is_a_bijection(count: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permutation(count, seed, epoch)), np.arange(count))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 60_000, 162_770])
def test_it_is_a_bijection_of_the_sets_in_use(count: int) -> None:
    assert np.array_equal(np.sort(permutation(count)), np.arange(count))


def test_a_square_holds_the_set_and_no_smaller_one_does() -> None:
    for count in (1, 2, 4, 5, 9, 10, 99, 100, 101, 2**31):
        side = philox.shuffle_side(count)
        assert (side - 1) ** 2 < count <= side**2


def test_every_image_is_as_likely_at_every_place() -> None:
    count, epochs = 23, 4000
    drawn = np.stack([permutation(count, 5, epoch) for epoch in range(epochs)])
    seen = np.stack([np.bincount(drawn[:, place], minlength=count) for place in range(count)])
    assert stats.chisquare(seen.ravel()).pvalue > 1e-3


def test_every_pair_of_images_is_as_likely_side_by_side() -> None:
    count, epochs = 11, 4000
    seen = np.zeros((count, count))
    for epoch in range(epochs):
        for pair in pairwise(permutation(count, 6, epoch)):
            seen[pair] += 1
    off_diagonal = seen[~np.eye(count, dtype=bool)]
    assert stats.chisquare(off_diagonal).pvalue > 1e-3


def test_neighbours_and_epochs_are_uncorrelated() -> None:
    count = 5000
    for epoch in range(20):
        here, there = permutation(count, 7, epoch), permutation(count, 7, epoch + 1)
        bound = 4.5 / math.sqrt(count)
        assert abs(np.corrcoef(here[:-1], here[1:])[0, 1]) < bound
        assert abs(np.corrcoef(here, there)[0, 1]) < bound
        assert abs(np.corrcoef(here, np.arange(count))[0, 1]) < bound


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**63 - 1))
def test_every_image_once_per_epoch(count: int, batch: int, seed: int) -> None:
    steps = 3 * count // batch + 2
    seen = np.concatenate(
        [philox.shuffled_indices(seed, s * batch, batch, count) for s in range(steps)]
    )
    for epoch in range(len(seen) // count):
        assert np.array_equal(np.sort(seen[epoch * count :][:count]), np.arange(count))


def test_epochs_and_seeds_shuffle_differently() -> None:
    first = permutation(100, 1, 0)
    assert not np.array_equal(first, permutation(100, 1, 1))
    assert not np.array_equal(first, permutation(100, 2, 0))


def test_indices_go_through_epoch_after_epoch() -> None:
    found = philox.shuffled_indices(3, 90, 60, 50)
    expected = np.concatenate([permutation(50, 3, 1)[40:], permutation(50, 3, 2)])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("count", [0, -1, 2**31 + 1])
def test_invalid_sizes(count: int) -> None:
    with pytest.raises(InputError, match="can be shuffled"):
        philox.permute(np.arange(1), count, philox.shuffle_keys(1, 0))
