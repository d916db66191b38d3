"""Drop-in modules: a convolution, transposed convolution or linear map, batch norm, activation."""

from fastinfogan.nn.blocks import Block, Chain, ConvBlock, LinearBlock, UpconvBlock
from fastinfogan.nn.fuse import FusionReport, fuse, unfuse
from fastinfogan.nn.likelihood import QHeadLikelihood
from fastinfogan.nn.statistics import frozen_statistics
from fastinfogan.nn.synchronise import synchronise
from fastinfogan_kernels.conv_block.layers import Images

__all__ = [
    "Block",
    "Chain",
    "ConvBlock",
    "FusionReport",
    "Images",
    "LinearBlock",
    "QHeadLikelihood",
    "UpconvBlock",
    "frozen_statistics",
    "fuse",
    "synchronise",
    "unfuse",
]
