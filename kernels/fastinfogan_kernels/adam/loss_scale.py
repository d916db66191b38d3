"""Loss scaling for fp16, so that small gradients do not round to 0.

The objective's gradients are multiplied by the scale in fp32, before they are rounded, and Adam
divides by it. If scaled gradients overflow though the losses are finite, their step and a later one
of the iteration update nothing, the iteration counts as skipped, and the scale is halved; after
`GROWTH` good iterations it is doubled. All of it happens on the device, see `objective.metrics`.

Source: Micikevicius et al. 2018, section 3.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FIRST = 2.0**16
GROWTH = 2000
LEAST, MOST = 1.0, 2.0**24


class LossScale:
    """A loss scale, and the weights that it multiplies.

    Args:
        weights: of the objective's parts.
        device: where it is used.

    Attributes:
        state: fp32 (2,): the scale, and the good iterations since it changed last.
        base: fp32 (weights,), as given.
        weights: fp32 (weights,): base times the scale.
    """

    def __init__(self, weights: Sequence[float], device: torch.device) -> None:
        self.state = torch.tensor([FIRST, 0.0], device=device)
        self.base = torch.tensor(list(weights), device=device)
        self.weights = self.base * FIRST

    @property
    def divisor(self) -> Tensor:
        """What gradients are to be divided by, fp32 (1,)."""
        return self.state[:1]

    def restored(self) -> None:
        """Recompute `weights` after `state` was written from outside."""
        torch.mul(self.base, self.state[0], out=self.weights)
