"""Blocks: a convolution, transposed convolution or linear map, batch norm, an activation."""

from fastinfogan.nn.blocks import ConvBlock, LinearBlock, UpconvBlock, statistics_frozen

__all__ = ["ConvBlock", "LinearBlock", "UpconvBlock", "statistics_frozen"]
