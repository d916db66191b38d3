"""A trunk and a generator as a person writes them in torch.nn: the reference's layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastinfogan.experiments import Experiment
from fastinfogan.reference import layers

Parts = tuple[Tensor, ...]


def plain(experiment: Experiment, which: str, device: torch.device) -> nn.Sequential:
    """Make a "trunk" or "generator", fp32, with the biases in front of batch norm frozen."""
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


def forward_backward(
    network: nn.Module,
    parts: Parts,
    upstream: Parts,
    autocast: torch.dtype | None = None,
    *,
    compiled: bool = False,
) -> Callable[[], tuple[Parts, Parts]]:
    """Make a run of a network forward and backward.

    Args:
        network: in training mode.
        parts: batches (N, C, H, W) or (N, features), each with its own batch statistics.
        upstream: the gradient by each result.
        autocast: its dtype; None for none.
        compiled: whether torch.compile makes it.

    Returns:
        Returns the results, and the gradients of the parameters that are trained.
    """
    trained = [p for p in network.parameters() if p.requires_grad]

    def forward(*parts: Tensor) -> Parts:
        return tuple(network(part) for part in parts)

    if compiled:
        forward = torch.compile(forward, dynamic=False)

    def run() -> tuple[Parts, Parts]:
        with torch.autocast(parts[0].device.type, autocast, enabled=autocast is not None):
            results = forward(*parts)
        return results, torch.autograd.grad(results, trained, upstream)

    return run
