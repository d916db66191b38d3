"""Images between bytes and the numbers that the networks see."""

import torch
from torch import Tensor


def to_network(
    images: Tensor,
    image_range: tuple[float, float],
    dtype: torch.dtype,
) -> Tensor:
    """Scale images as the experiment has them.

    Args:
        images: uint8 (B, height, width, channels).
        image_range: what 0 and 255 become.
        dtype: floating point.

    Returns:
        (B, channels, height, width), channels_last.
    """
    scaled = images.permute(0, 3, 1, 2).to(dtype).div_(255.0)
    low, high = image_range
    return scaled if (low, high) == (0.0, 1.0) else scaled.mul_(high - low).add_(low)


def to_bytes(images: Tensor, image_range: tuple[float, float]) -> Tensor:
    """Turn a generator's output into uint8 (B, height, width, channels), on the same device."""
    low, high = image_range
    scaled = (images - low) * (255.0 / (high - low))
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
