"""The variational bound on the mutual information of codes and image, and its weights."""

import torch
from torch import Tensor

from fastinfogan.experiments import Experiment
from fastinfogan_kernels.latents import Continuous, LatentSpec
from fastinfogan_kernels.objective.likelihood import q_head_log_likelihood


def lambdas(experiment: Experiment) -> list[float]:
    """Return the weight of each code's bound in the losses: the lambda of its kind."""
    return [
        experiment.lambda_continuous
        if isinstance(code, Continuous)
        else experiment.lambda_categorical
        for code in experiment.latents.codes
    ]


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
