"""The kernel that chooses, moves and scales real images, against NumPy and torch."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastinfogan_kernels import philox
from fastinfogan_kernels.inputs.real_images import real_images


def both(
    images: torch.Tensor, rows: int, seed: int, step: int | torch.Tensor, **more: object
) -> list[torch.Tensor]:
    """Compute rows by the kernel, and by the reference."""
    found = []
    for impl in ("triton", "reference"):
        out = torch.full((rows, *images.shape[1:]), -7.0, device=images.device)
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
    device: torch.device, count: int, seed: int, step: int, first_row: int, on_device: bool
) -> None:
    """The two pixels of an image are its index."""
    images = torch.arange(count)[:, None] // torch.tensor([1, 256]) % 256
    images = images.to(device, torch.uint8).view(count, 1, 2, 1)
    rows, all_rows = 5, 16
    counter = torch.tensor(step, device=device) if on_device else step
    actual, baseline = both(images, rows, seed, counter, first_row=first_row, all_rows=all_rows)
    pixels = (actual * 255).round().long().view(rows, 2)
    number = pixels[:, 0] + 256 * pixels[:, 1]
    expected = philox.shuffled_indices(seed, step * all_rows + first_row, rows, count)
    assert torch.equal(number.cpu(), torch.from_numpy(expected))
    torch.testing.assert_close(actual, baseline)


@pytest.mark.parametrize("shape", [(28, 28, 1), (20, 33, 3)])
@pytest.mark.parametrize("image_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_moved_images(
    shape: tuple[int, int, int], image_range: tuple[float, float], device: torch.device
) -> None:
    images = torch.randint(0, 256, (9, *shape), dtype=torch.uint8, device=device)
    actual, baseline = both(images, 6, 5, 2, augmentation="affine", image_range=image_range)
    torch.testing.assert_close(actual, baseline, rtol=0, atol=2e-4)
    still, _ = both(images, 6, 5, 2, image_range=image_range)
    assert (actual - still).abs().max() > 0.1


def test_rows_in_order_are_moved_as_their_rows_of_the_set_are(device: torch.device) -> None:
    """A buffer of one batch in place of the set: the same batch."""
    images = torch.randint(0, 256, (9, 20, 33, 3), dtype=torch.uint8, device=device)
    for augmentation in ("none", "affine"):
        more = {"augmentation": augmentation, "first_row": 2, "all_rows": 8}
        whole = both(images, 5, 5, 2, **more)
        chosen = images[torch.from_numpy(philox.shuffled_indices(5, 2 * 8 + 2, 5, 9)).to(device)]
        buffer = torch.cat([chosen, chosen[:1]])  # longer than the batch
        for one, other in zip(both(buffer, 5, 5, 2, in_order=True, **more), whole, strict=True):
            assert torch.equal(one, other)


def test_dtypes(device: torch.device, dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (9, 8, 8, 1), dtype=torch.uint8, device=device)
    out = torch.empty(4, 8, 8, 1, dtype=dtype, device=device)
    real_images(images, 5, 2, out, impl="triton")
    expected = both(images, 4, 5, 2)[1]
    torch.testing.assert_close(out.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)
