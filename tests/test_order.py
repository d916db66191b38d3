"""The order of images, and the augmentation, as functions of (seed, step)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastinfogan.data import EpochOrder
from fastinfogan.data.augment import affine, affine_matrices
from fastinfogan.errors import InputError


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**63 - 1))
def test_every_image_once_per_epoch(count: int, batch: int, seed: int) -> None:
    order = EpochOrder(count, batch, seed)
    seen = np.concatenate([order.indices(step) for step in range(3 * count // batch + 2)])
    for epoch in range(len(seen) // count):
        assert np.array_equal(np.sort(seen[epoch * count :][:count]), np.arange(count))


def test_a_step_does_not_depend_on_those_before() -> None:
    walked = EpochOrder(50, 8, 1)
    steps = [walked.indices(step) for step in range(20)]
    for step in (19, 3, 7):
        assert np.array_equal(EpochOrder(50, 8, 1).indices(step), steps[step])


def test_epochs_and_seeds_shuffle_differently() -> None:
    order = EpochOrder(100, 100, 1)
    assert not np.array_equal(order.indices(0), order.indices(1))
    assert not np.array_equal(order.indices(0), EpochOrder(100, 100, 2).indices(0))


def test_no_images_have_no_order() -> None:
    with pytest.raises(InputError):
        EpochOrder(0, 4, 1)


def test_affine_maps_are_small_and_drawn_by_row() -> None:
    maps = affine_matrices(1, 2, 500, 28, 28)
    assert np.abs(maps[:, :, 2]).max() < 2 * 2 / 28  # two pixels of 28
    determinants = np.linalg.det(maps[:, :, :2])
    assert 0.81 < determinants.min() < determinants.max() < 1.23
    assert np.abs(maps[:, :, :2] - np.eye(2)).max() < 0.4
    assert np.array_equal(maps[40:60], affine_matrices(1, 2, 20, 28, 28, first_row=40))


def test_the_map_that_changes_nothing() -> None:
    images = torch.rand(3, 1, 28, 28)
    same = torch.eye(2, 3).repeat(3, 1, 1)
    torch.testing.assert_close(affine(images, same), images, rtol=0, atol=1e-5)


def test_a_shift_moves_pixels_and_leaves_black_behind() -> None:
    images = torch.rand(1, 1, 28, 28)
    right = torch.tensor([[[1.0, 0.0, -2 * 2 / 28], [0.0, 1.0, 0.0]]])
    moved = affine(images, right)
    torch.testing.assert_close(moved[..., 2:], images[..., :-2], rtol=0, atol=1e-5)
    assert moved[..., 0].abs().max() == 0


def test_a_rotation_keeps_lengths_on_images_that_are_not_square() -> None:
    maps = affine_matrices(3, 0, 200, 20, 40)
    # In pixels, a map's linear part is rotation, shear and scaling: singular values near 1.
    half = np.diag([20.0, 10.0])
    in_pixels = half @ maps[:, :, :2].astype(np.float64) @ np.linalg.inv(half)
    values = np.linalg.svd(in_pixels, compute_uv=False)
    assert 0.8 < values.min() < values.max() < 1.25
