"""The kernel that chooses, moves and scales real images, against NumPy and torch."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastinfogan_kernels import shuffle
from fastinfogan_kernels.inputs.real_images import real_images


def both(
    images: torch.Tensor, rows: int, seed: int, step: int | torch.Tensor, **more: object
) -> list[torch.Tensor]:
    found = []
    for impl in ("triton", "reference"):
        out = torch.full((rows, *images.shape[1:]), -7.0)
        real_images(images, seed, step, out, impl=impl, **more)  # type: ignore[arg-type]
        found.append(out)
    return found


@settings(max_examples=25)
@given(
    count=st.integers(1, 400),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    first_row=st.integers(0, 9),
    on_device=st.booleans(),
)
@example(count=9, seed=0, step=2**31, first_row=0, on_device=False)
@example(count=1, seed=5, step=2**32 - 1, first_row=9, on_device=True)
def test_the_same_images_whatever_the_set(
    count: int, seed: int, step: int, first_row: int, on_device: bool
) -> None:
    """Each image's pixels are its number, so that one pixel tells which it is."""
    images = torch.arange(count)[:, None] // torch.tensor([1, 256]) % 256
    images = images.to(torch.uint8).view(count, 1, 2, 1)
    rows, all_rows = 5, 16
    counter = torch.tensor(step) if on_device else step
    ours, theirs = both(images, rows, seed, counter, first_row=first_row, all_rows=all_rows)
    pixels = (ours * 255).round().long().view(rows, 2)
    number = pixels[:, 0] + 256 * pixels[:, 1]
    expected = shuffle.indices(seed, step * all_rows + first_row, rows, count)
    assert torch.equal(number, torch.from_numpy(expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(28, 28, 1), (20, 33, 3)])
@pytest.mark.parametrize("image_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_moved_images(shape: tuple[int, int, int], image_range: tuple[float, float]) -> None:
    images = torch.randint(0, 256, (9, *shape), dtype=torch.uint8)
    ours, theirs = both(images, 6, 5, 2, augmentation="affine", image_range=image_range)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    still, _ = both(images, 6, 5, 2, image_range=image_range)
    assert (ours - still).abs().max() > 0.1


def test_rows_in_order_are_moved_as_their_rows_of_the_set_are() -> None:
    """A buffer of one batch in place of the set: the same batch."""
    images = torch.randint(0, 256, (9, 20, 33, 3), dtype=torch.uint8)
    for augmentation in ("none", "affine"):
        more = {"augmentation": augmentation, "first_row": 2, "all_rows": 8}
        whole = both(images, 5, 5, 2, **more)
        chosen = images[torch.from_numpy(shuffle.indices(5, 2 * 8 + 2, 5, 9))]
        buffer = torch.cat([chosen, chosen[:1]])  # longer than the batch
        for one, other in zip(both(buffer, 5, 5, 2, in_order=True, **more), whole, strict=True):
            assert torch.equal(one, other)


def test_halves_of_fp16() -> None:
    images = torch.randint(0, 256, (9, 8, 8, 1), dtype=torch.uint8)
    out = torch.empty(4, 8, 8, 1, dtype=torch.float16)
    real_images(images, 5, 2, out, impl="triton")
    torch.testing.assert_close(out.float(), both(images, 4, 5, 2)[1], rtol=1e-3, atol=1e-3)
