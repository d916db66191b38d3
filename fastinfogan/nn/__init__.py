"""Fused InfoGAN blocks for any PyTorch model: `import fastinfogan.nn as fnn`.

`fnn.Chain(fnn.ConvBlock(3, 64, 4, 2), ...)` builds a network of blocks, `fnn.fuse(model)` fuses the
layers of an existing one, `fnn.QHeadLikelihood(fnn.LatentSpec(...))` computes log Q(c|x).
"""

from fastinfogan.nn.blocks import (
    Block,
    Chain,
    ConvBlock,
    LinearBlock,
    UpconvBlock,
    frozen_statistics,
)
from fastinfogan.nn.fuse import FusionReport, fuse, synchronise, unfuse
from fastinfogan.nn.likelihood import QHeadLikelihood
from fastinfogan_kernels.conv_block.layers import Images
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise

__all__ = [
    "Block",
    "Categorical",
    "Chain",
    "Continuous",
    "ConvBlock",
    "FusionReport",
    "Images",
    "LatentSpec",
    "LinearBlock",
    "Noise",
    "QHeadLikelihood",
    "UpconvBlock",
    "frozen_statistics",
    "fuse",
    "synchronise",
    "unfuse",
]
