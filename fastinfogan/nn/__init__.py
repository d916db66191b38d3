"""Drop-in modules: a convolution, transposed convolution or linear map, batch norm, activation."""

from fastinfogan.kernels.images import Images
from fastinfogan.nn.blocks import (
    Block,
    Chain,
    ConvBlock,
    LinearBlock,
    UpconvBlock,
    statistics_frozen,
)

__all__ = [
    "Block",
    "Chain",
    "ConvBlock",
    "Images",
    "LinearBlock",
    "UpconvBlock",
    "statistics_frozen",
]
