"""The variational bound on the mutual information of codes and image, and what weighs it.

Computed in float32 at least, whatever the networks' precision: by the kernels, or for float64 by
plain torch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastinfogan.experiments import Experiment
from fastinfogan_kernels.latents import Continuous
from fastinfogan_kernels.objective.likelihood import q_head_log_likelihood
from fastinfogan_kernels.objective.targets import counters


@dataclass(frozen=True)
class MutualInformation:
    """L_I = H(c) + E[log Q(c|x)] (paper, equation 5).

    Attributes:
        bounds: (codes,), nats, one bound per code.
        weighted: scalar, lambda * L_I with each kind of code's own lambda; both losses subtract it.
    """

    bounds: Tensor
    weighted: Tensor


def lambdas(experiment: Experiment) -> list[float]:
    """What multiplies the bound of each code: its kind's lambda."""
    return [
        experiment.lambda_continuous
        if isinstance(code, Continuous)
        else experiment.lambda_categorical
        for code in experiment.latents.codes
    ]


class InformationBound:
    """Computes L_I for one experiment on one device.

    Args:
        experiment: codes and lambdas.
        device: of the tensors to come.
        dtype: float32, or float64 in tests.

    Attributes:
        counted: what was wrong with outputs and codes so far, see `kernels.targets.counters`.
    """

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec = experiment.latents
        weights = lambdas(experiment)
        self._entropies = torch.tensor(self.spec.entropies, device=device, dtype=dtype)
        self._weights = torch.tensor(weights, device=device, dtype=dtype)
        self.counted = counters(self.spec, device)

    def __call__(self, q_output: Tensor, classes: Tensor, continuous: Tensor) -> MutualInformation:
        """Bound the information between codes and image; shapes as in `q_head_log_likelihood`."""
        found = q_head_log_likelihood(
            q_output, classes, continuous, self.spec, counted=self.counted
        )
        bounds = self._entropies + found
        return MutualInformation(bounds, (self._weights * bounds).sum())
