"""The variational bound on the mutual information of codes and image."""

import torch
from torch import Tensor

from fastinfogan_kernels.latents import LatentSpec
from fastinfogan_kernels.objective.likelihood import q_head_log_likelihood


def information_bounds(
    output: Tensor, classes: Tensor, continuous: Tensor, spec: LatentSpec
) -> Tensor:
    """Compute L_I = H(c) + E[log Q(c|x)] of each code (paper, equation 5).

    Args:
        output: Q's raw output; (B, output_width), any floating dtype.
        classes: categorical codes; integers (B, categorical codes).
        continuous: continuous codes; (B, continuous codes).
        spec: the layout and the prior.

    Returns:
        (codes,), nats, fp32, or fp64 of fp64; NaN where a class or an output is invalid.

    Raises:
        InputError: shapes, dtypes or devices do not fit.
    """
    found = q_head_log_likelihood(output, classes, continuous, spec)
    return torch.tensor(spec.entropies, dtype=found.dtype, device=found.device) + found
