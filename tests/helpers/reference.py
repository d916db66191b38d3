"""The reference, stepped on what the product draws."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastinfogan.engine import Iteration
from fastinfogan.reference import Reference
from fastinfogan_kernels import shuffle
from fastinfogan_kernels.philox import Stream
from tests.helpers.training import made_up_images


def step_reference(
    reference: Reference, ours: Iteration, step: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """One iteration of the reference on the product's images and the spec's own draws.

    Returns:
        Losses less their MI terms, bounds of the D step, bounds of the G step.
    """
    e, s = reference.experiment, ours.config
    images = made_up_images(e).images
    images = images[shuffle.indices(s.seed, step * s.batch_size, s.batch_size, len(images))]
    low, high = e.image_range
    dtype = next(reference.trunk.parameters()).dtype
    real = torch.tensor(images).permute(0, 3, 1, 2).to(dtype) / 255 * (high - low) + low
    latents = [
        e.latents.draw(s.seed, step, stream, s.batch_size)
        for stream in (Stream.D_STEP, Stream.G_STEP)
    ]
    d, d_bounds = reference.d_step(real, latents[0])
    g, g_bounds = reference.g_step(latents[1])
    losses = [d + reference.weighted(d_bounds), g + reference.weighted(g_bounds)]
    return [loss.detach() for loss in losses], d_bounds, g_bounds


def widen(networks: Iterable[nn.Module]) -> None:
    """Weights of the scale that keeps activations near 1.

    The first images of the paper's 0.02 are all but constant; batch norm then divides rounding
    errors by next to nothing, and which side of a leaky ReLU's kink they fall on is chance.
    """
    source = torch.Generator().manual_seed(1)
    for network in networks:
        for parameter in network.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                drawn = torch.randn(parameter.shape, generator=source) / fan_in**0.5
                parameter.data.copy_(drawn)
