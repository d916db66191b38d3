"""A trunk and a generator as a person writes them in torch.nn: the reference's layers."""

import torch
from torch import Tensor, nn

from fastinfogan.experiments import Experiment
from fastinfogan.reference import layers


def plain(experiment: Experiment, which: str, device: torch.device) -> nn.Sequential:
    """Make a network of the experiment, fp32, with the biases in front of batch norm frozen.

    Args:
        experiment: whose.
        which: "trunk" or "generator".
        device: where.
    """
    e = experiment
    with device:
        if which == "trunk":
            network = layers(e.trunk, e.channels, e.height, e.slope)
        else:
            network = layers(e.generator, e.latents.input_width, 0, e.slope)
    for module, after in zip(network, [*list(network)[1:], None], strict=True):
        if isinstance(after, nn.BatchNorm1d | nn.BatchNorm2d):
            module.bias.requires_grad_(False)  # type: ignore[union-attr]
    return network


class ForwardBackward:
    """A network forward and backward on fixed inputs.

    Args:
        network: in training mode.
        parts: batches (N, C, H, W) or (N, features), each with batch statistics of its own.
        upstream: the gradient by each result.
        precision: of autocast; None for none.
        compiled: whether torch.compile makes it.
    """

    def __init__(
        self,
        network: nn.Module,
        parts: tuple[Tensor, ...],
        upstream: tuple[Tensor, ...],
        precision: torch.dtype | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        self.network = network
        self._parts, self._upstream = parts, upstream
        self._autocast = precision
        self._trained = [p for p in network.parameters() if p.requires_grad]
        self._forward = torch.compile(self._all, dynamic=False) if compiled else self._all

    def _all(self, *parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(part) for part in parts)

    def __call__(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Results, and the gradients of the parameters that are trained."""
        on = self._autocast is not None
        with torch.autocast(self._parts[0].device.type, self._autocast, enabled=on):
            out = self._forward(*self._parts)
        return out, torch.autograd.grad(out, self._trained, self._upstream)
