"""The losses and the variational bound on the mutual information, from logits, in fp32.

Everything is computed in float32 at least, whatever the networks' precision.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan.experiments import Experiment
from fastinfogan.latents import Continuous, LatentSpec

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-mean log D(x) - mean log(1 - D(G(z, c))); logits of any shape, a scalar in nats."""
    return F.softplus(-_wide(real_logits)).mean() + F.softplus(_wide(fake_logits)).mean()


def g_loss(fake_logits: Tensor) -> Tensor:
    """-mean log D(G(z, c)), the non-saturating loss; logits of any shape, a scalar in nats."""
    return F.softplus(-_wide(fake_logits)).mean()


def log_likelihood(
    q_output: Tensor, classes: Tensor, continuous: Tensor, spec: LatentSpec
) -> Tensor:
    """E[log Q(c|x)] of each code.

    Args:
        q_output: (B, output_width), Q's raw output.
        classes: int64 (B, categorical codes).
        continuous: (B, continuous codes).
        spec: what stands where.

    Returns:
        (codes,), nats, means over the batch: log softmax at the true class, and the Gaussian log
        density with its log(2 pi) / 2.
    """
    q = _wide(q_output)
    values = [
        F.log_softmax(q[:, place], dim=1).gather(1, classes[:, i : i + 1]).mean()
        for i, place in enumerate(spec.logit_slices)
    ]
    means, raw = q[:, spec.mean_slice], q[:, spec.deviation_slice]
    for i, code in enumerate(spec.continuous):
        log_deviation = _log_deviation(raw[:, i], code)
        distance = (continuous[:, i] - means[:, i]) * torch.exp(-log_deviation)
        values.append((-0.5 * distance.square() - log_deviation).mean() - _HALF_LOG_2PI)
    return torch.stack(values) if values else q.new_zeros(0)


def _log_deviation(raw: Tensor, code: Continuous) -> Tensor:
    if code.deviation == "fixed":
        return torch.zeros_like(raw)
    if code.deviation == "clipped":
        return raw.clamp(math.log(code.clip[0]), math.log(code.clip[1]))
    return raw


@dataclass(frozen=True)
class MutualInformation:
    """L_I = H(c) + E[log Q(c|x)] (paper, equation 5).

    Attributes:
        bounds: (codes,), nats, one bound per code.
        weighted: scalar, lambda * L_I with each kind of code's own lambda; both losses subtract it.
    """

    bounds: Tensor
    weighted: Tensor


class InformationBound:
    """Computes L_I for one experiment on one device.

    Args:
        experiment: codes and lambdas.
        device: of the tensors to come.
        dtype: float32, or float64 in tests.
    """

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec = experiment.latents
        weights = [
            experiment.lambda_continuous
            if isinstance(code, Continuous)
            else experiment.lambda_categorical
            for code in self.spec.codes
        ]
        self._entropies = torch.tensor(self.spec.entropies, device=device, dtype=dtype)
        self._weights = torch.tensor(weights, device=device, dtype=dtype)

    def __call__(self, q_output: Tensor, classes: Tensor, continuous: Tensor) -> MutualInformation:
        """Bound the information between codes and image; shapes as in `log_likelihood`."""
        bounds = self._entropies + log_likelihood(q_output, classes, continuous, self.spec)
        return MutualInformation(bounds, (self._weights * bounds).sum())
