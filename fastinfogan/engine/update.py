"""An optimizer's step as one fixed operation: by gradients that are handed over, not looked up."""

from collections.abc import Sequence

from torch import Tensor

from fastinfogan.optim import Adam
from fastinfogan_kernels.adam.adam import NATIVELY, OneLaunch, launcher_of, update


class Update:
    """One group of an Adam, of whose parameters all have gradients; traceable and capturable.

    Args:
        adam: with its state made and its copies kept; both must stay where they are.
        found_inf: int32, one element: not 0, and nothing is updated.
        grad_scale: fp32, one element, by which gradients are divided; those that are not finite
            are told in `found_inf` first. None: they are as they should be.
        by_triton: whether Triton's kernel computes it.
    """

    def __init__(
        self, adam: Adam, found_inf: Tensor, grad_scale: Tensor | None, *, by_triton: bool
    ) -> None:
        (self._group,) = adam.param_groups
        parameters = self._group["params"]
        state = [adam.state[p] for p in parameters]
        moments = ([each[name] for each in state] for name in ("exp_avg", "exp_avg_sq", "step"))
        copied = [i for i, p in enumerate(parameters) if p in adam.copies]
        copies = [adam.copies[parameters[i]].detach() for i in copied]
        self._written = ([p.detach() for p in parameters], *moments, copies, copied)
        self._found_inf, self._grad_scale = found_inf, grad_scale
        self._launcher: OneLaunch | None = None
        self._number = NATIVELY
        if by_triton:
            self._launcher, self._number = launcher_of(parameters[0].device)

    def reserve(self, captures: int) -> None:
        """Prepare, at the next update, for so many of them in CUDA graphs captured after it."""
        if self._launcher is not None:
            # Scaled gradients are looked through first, by a table of its own in a capture.
            self._launcher.reserve(captures * (1 if self._grad_scale is None else 2))

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """Update by one gradient for each parameter, in the group's order."""
        group = self._group
        update(
            *self._written,
            gradients,
            self._found_inf,
            self._grad_scale,
            group["lr"],
            *group["betas"],
            group["eps"],
            self._number,
        )
