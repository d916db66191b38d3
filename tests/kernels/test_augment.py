"""The augmentation: affine maps as functions of (seed, step), and what they do to images."""

import numpy as np
import torch

from fastinfogan_kernels.inputs.real_images import affine_matrices, resample


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
    torch.testing.assert_close(resample(images, same), images, rtol=0, atol=1e-5)


def test_a_shift_moves_pixels_and_leaves_black_behind() -> None:
    images = torch.rand(1, 1, 28, 28)
    right = torch.tensor([[[1.0, 0.0, -2 * 2 / 28], [0.0, 1.0, 0.0]]])
    moved = resample(images, right)
    torch.testing.assert_close(moved[..., 2:], images[..., :-2], rtol=0, atol=1e-5)
    assert moved[..., 0].abs().max() == 0


def test_a_rotation_keeps_lengths_on_images_that_are_not_square() -> None:
    maps = affine_matrices(3, 0, 200, 20, 40)
    # In pixels, a map's linear part is rotation, shear and scaling: singular values near 1.
    half = np.diag([20.0, 10.0])
    in_pixels = half @ maps[:, :, :2].astype(np.float64) @ np.linalg.inv(half)
    values = np.linalg.svd(in_pixels, compute_uv=False)
    assert 0.8 < values.min() < values.max() < 1.25
