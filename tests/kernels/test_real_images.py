"""Batches of real images by plain torch: which, moved how, in what range; the affine maps."""

import numpy as np
import pytest
import torch

from fastinfogan.errors import InputError
from fastinfogan_kernels import philox
from fastinfogan_kernels.inputs.real_images import affine_matrices, real_images, resample

COUNT, SEED = 20, 3


def images(channels: int = 1, side: int = 28) -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (COUNT, side, side, channels), dtype=np.uint8))


def batch(step: int, rows: int = 8, **more: object) -> torch.Tensor:
    out = torch.empty(rows, 28, 28, 1)
    real_images(images(), SEED, step, out, **more)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("step", [0, 1, 2, 1000])
def test_a_step_takes_its_places_of_the_shuffle(step: int) -> None:
    index = torch.from_numpy(philox.shuffled_indices(SEED, step * 8, 8, COUNT))
    assert torch.equal(batch(step), images()[index].float() / 255)


def test_a_rank_takes_its_rows_of_the_batch() -> None:
    whole = batch(4, augmentation="affine")
    parts = [batch(4, 3, first_row=first, all_rows=8, augmentation="affine") for first in (0, 3, 5)]
    for first, part in zip((0, 3, 5), parts, strict=True):
        torch.testing.assert_close(part, whole[first : first + 3])


def test_augmented_images_are_moved_by_the_drawn_matrices() -> None:
    matrices = torch.from_numpy(affine_matrices(SEED, 2, 8, 28, 28))
    expected = resample(batch(2).permute(0, 3, 1, 2), matrices).permute(0, 2, 3, 1)
    found = batch(2, augmentation="affine")
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, batch(2))


def test_the_range_is_scaled_after_moving() -> None:
    """What comes from outside is black, whatever black is."""
    moved = batch(2, augmentation="affine")
    scaled = batch(2, augmentation="affine", image_range=(-1.0, 1.0))
    torch.testing.assert_close(scaled, moved * 2 - 1)


def test_a_counter_is_as_good_as_a_number() -> None:
    assert torch.equal(batch(7), batch(torch.tensor(7)))  # type: ignore[arg-type]


def test_rows_in_order_are_chosen_already() -> None:
    chosen = images()[torch.from_numpy(philox.shuffled_indices(SEED, 4 * 8, 8, COUNT))]
    out = torch.empty(8, 28, 28, 1)
    real_images(chosen, SEED, 4, out, augmentation="affine", in_order=True)
    assert torch.equal(out, batch(4, augmentation="affine"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    out = torch.empty(8, 28, 28, 1, dtype=dtype)
    real_images(images(), SEED, 1, out)
    torch.testing.assert_close(out.float(), batch(1), rtol=1e-2, atol=1e-2)


BAD = {
    "images must be uint8": {"images": images().float()},
    "out must have rows of": {"out": torch.empty(8, 28, 27, 1)},
    "out must be contiguous and floating point": {
        "out": torch.empty(8, 28, 28, 1, dtype=torch.uint8)
    },
    "a step counter must be an int64 tensor": {"step": torch.tensor(1, dtype=torch.int32)},
    "a set must have 1 to": {"images": torch.empty(0, 28, 28, 1, dtype=torch.uint8)},
    "8 rows in order need as many": {"images": images()[:7], "in_order": True},
    "`seed` must be": {"seed": -1},
    "impl='triton' needs CUDA": {"impl": "triton"},
    "no implementation in C": {"impl": "native"},
}


@pytest.mark.parametrize(("message", "wrong"), BAD.items(), ids=BAD)
def test_invalid_arguments(message: str, wrong: dict[str, object]) -> None:
    given = {"images": images(), "seed": 1, "step": 0, "out": torch.empty(8, 28, 28, 1), **wrong}
    with pytest.raises(InputError, match=message):
        real_images(**given)  # type: ignore[arg-type]


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
