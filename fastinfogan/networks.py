"""Generator, trunk, D head and Q head, built from an experiment's block tables."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import Parameter

from fastinfogan.experiments import BlockSpec, Experiment
from fastinfogan.nn import Block, Chain, ConvBlock, LinearBlock, UpconvBlock

_D_OUTPUT = BlockSpec("linear", 1, batch_norm=False, activation="none")


def _chain(
    blocks: tuple[BlockSpec, ...], shape: tuple[int, int, int], slope: float
) -> tuple[Chain, tuple[int, int, int]]:
    """Build a table's blocks for an input of shape (channels, height, width); height 0 is a row.

    Returns:
        The chain, and the shape of what it gives in the same terms.
    """
    channels, height, width = shape
    chain = Chain()
    for b in blocks:
        if b.kind == "linear":
            chain.append(
                LinearBlock(
                    channels * max(height * width, 1),
                    b.features,
                    batch_norm=b.batch_norm,
                    activation=b.activation,
                    slope=slope,
                    shape=(b.height, b.width, b.channels) if b.height else None,
                )
            )
            height, width = b.height, b.width
        else:
            kind = ConvBlock if b.kind == "conv" else UpconvBlock
            chain.append(
                kind(
                    channels,
                    b.channels,
                    b.kernel,
                    b.stride,
                    batch_norm=b.batch_norm,
                    activation=b.activation,
                    slope=slope,
                )
            )
            if b.kind == "conv":
                height, width = height // b.stride, width // b.stride
            else:
                height, width = height * b.stride, width * b.stride
        channels = b.channels
    return chain, (channels, height, width)


class InfoGAN(nn.Module):
    """The four networks of one experiment, initialised as the released code does.

    Args:
        experiment: what is trained.
        seed: of the initial weights.

    Attributes:
        generator: (B, input_width) to (B, C, H, W), channels_last.
        trunk: (B, C, H, W) to what both heads read.
        d_head: the trunk's output to the logit of "real", (B, 1).
        q_head: the trunk's output to the parameters of Q(c|x), (B, output_width).
    """

    def __init__(self, experiment: Experiment, seed: int = 0) -> None:
        super().__init__()
        e = experiment
        spec = e.latents
        q_output = BlockSpec("linear", spec.output_width, batch_norm=False, activation="none")
        self.generator, _ = _chain(e.generator, (spec.input_width, 0, 0), e.slope)
        self.trunk, features = _chain(e.trunk, (e.channels, e.height, e.width), e.slope)
        self.d_head, _ = _chain((_D_OUTPUT,), features, e.slope)
        self.q_head, _ = _chain((*e.q_head, q_output), features, e.slope)
        source = torch.Generator().manual_seed(seed)
        for network in (self.generator, self.trunk, self.d_head, self.q_head):
            for block in network:
                assert isinstance(block, Block)
                block.reset_parameters(source)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def d_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield names and parameters of what the D step trains: trunk, D head and Q head."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and not name.startswith("generator."):
                yield name, parameter

    def g_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield names and parameters of what the G step trains: the generator."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and name.startswith("generator."):
                yield name, parameter
