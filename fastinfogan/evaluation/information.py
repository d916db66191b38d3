"""The bound on the mutual information, measured on fresh codes."""

import torch

from fastinfogan.model import Model
from fastinfogan.objective import information_bounds
from fastinfogan_kernels.inputs.draw import draw_codes
from fastinfogan_kernels.philox import Stream


@torch.no_grad()
def fresh_information(trained: Model, rows: int = 4096, seed: int = 0) -> dict[str, float]:
    """L_I of each code on images that training has not seen.

    Args:
        trained: the networks.
        rows: how many images to generate.
        seed: of the codes.

    Returns:
        Nats by the code's name: c1, c2, ...
    """
    spec = trained.experiment.latents
    codes = draw_codes(spec, seed, 0, Stream.EVALUATION, rows, device=trained.device)
    output = trained.read_generated(codes)
    bounds = information_bounds(output, codes.classes, codes.continuous, spec)
    return dict(zip(spec.names, bounds.tolist(), strict=True))
