"""Blocks for the tests, and the layers of torch.nn that they stand for."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastinfogan.nn import Block, Chain, ConvBlock, LinearBlock, UpconvBlock


def activation_of(block: Block) -> Callable[[Tensor], Tensor]:
    return {
        "none": lambda z: z,
        "relu": torch.relu,
        "leaky_relu": lambda z: F.leaky_relu(z, block.slope),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }[block.activation]


def plain(block: Block) -> Callable[[Tensor], Tensor]:
    """What a block computes, by torch's own modules with the block's own parameters."""
    layer, norm, activation = block.layer, block.norm, activation_of(block)

    def run(x: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear) and x.dim() == 4:
            x = x.permute(0, 2, 3, 1).flatten(1)
        if isinstance(block, ConvBlock) and block.padding[0] != block.padding[1]:
            x = F.pad(x, block.padding * 2)
        z = layer(x)
        if isinstance(block, UpconvBlock):
            height, width = (side * layer.stride[0] for side in x.shape[2:])
            z = z[:, :, :height, :width]
        out = activation(norm(z) if norm is not None else z)
        if isinstance(block, LinearBlock) and block.shape is not None:
            out = out.unflatten(1, block.shape).permute(0, 3, 1, 2)
        return out

    return run


def trained_somewhat(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """In a dtype, with statistics and parameters that are none of 0 and 1."""
    source = torch.Generator().manual_seed(7)
    module.to(dtype)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=source, dtype=torch.float64) / 3)
                if name.endswith(("running_var", "norm.weight")):
                    tensor.abs_().add_(0.5)
    return module.requires_grad_()


def a_chain() -> Chain:
    """Every kind of block."""
    return Chain(
        ConvBlock(2, 4, 4, 2, batch_norm=False),
        ConvBlock(4, 6, 4, 2),
        LinearBlock(6 * 2 * 2, 10, activation="relu"),
        LinearBlock(10, 3 * 2 * 2, shape=(2, 2, 3), activation="relu"),
        UpconvBlock(3, 4, 4, 2),
        UpconvBlock(4, 1, 4, 2, batch_norm=False, activation="sigmoid"),
    )


def plain_chain(chain: Chain) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for block in chain:
            x = plain(block)(x)  # type: ignore[arg-type]
        return x

    return run
