"""Drop-in modules: a convolution, transposed convolution or linear map, batch norm, activation."""

from fastinfogan.kernels.images import Images
from fastinfogan.nn.blocks import Block, Chain, ConvBlock, LinearBlock, UpconvBlock
from fastinfogan.nn.fuse import FusionReport, fuse, unfuse
from fastinfogan.nn.likelihood import QHeadLikelihood
from fastinfogan.nn.statistics import statistics_frozen
from fastinfogan.nn.synchronise import synchronise

__all__ = [
    "Block",
    "Chain",
    "ConvBlock",
    "FusionReport",
    "Images",
    "LinearBlock",
    "QHeadLikelihood",
    "UpconvBlock",
    "fuse",
    "statistics_frozen",
    "synchronise",
    "unfuse",
]
