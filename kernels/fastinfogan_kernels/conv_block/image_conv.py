"""The first convolution on images: the host side of `device.images`, and what images are."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.bn_stats import Forward, mergeable
from fastinfogan_kernels.conv_block.deferred import Tiles
from fastinfogan_kernels.conv_block.geometry import Window, weight_strides
from fastinfogan_kernels.conv_block.image_conv_kernels import (
    image_block_kernel,
    image_weight_gradient_kernel,
)
from fastinfogan_kernels.conv_block.launch_table import GemmTile
from fastinfogan_kernels.conv_block.weight_grad import cut_steps
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.runtime.arrival_counters import arrival_counters
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.machine import machine_of, power_of_two, precision
from fastinfogan_kernels.runtime.workspace import empty

MAX_DEPTH = 64
"""Taps times channels that one step of the flattened window holds."""


@dataclass(frozen=True)
class Images:
    """Images as they lie in memory, and what turns them into a network's input.

    Attributes:
        data: uint8 or floating point (M, height, width, channels), contiguous.
        index: int64 (N,): which images make the batch; None for all of them.
        scale: by which a pixel is multiplied.
        shift: what is added then.
        dtype: of the maps computed from it.
    """

    data: Tensor
    index: Tensor | None = None
    scale: float = 1.0
    shift: float = 0.0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.data.dim() != 4 or not self.data.is_contiguous():
            raise InputError("images are (M, height, width, channels) and contiguous")
        if self.index is not None and (self.index.dtype != torch.int64 or self.index.dim() != 1):
            raise InputError(
                f"the index of images is int64 in one dimension, not {self.index.dtype} in "
                f"{self.index.dim()}"
            )

    @property
    def count(self) -> int:
        """N, the images in the batch."""
        return len(self.data) if self.index is None else len(self.index)

    def materialize(self) -> Tensor:
        """The input written out: (N, C, H, W), channels_last."""
        data = self.data if self.index is None else self.data.index_select(0, self.index)
        wide = data.to(torch.promote_types(self.dtype, torch.float32))
        scaled = wide * self.scale + self.shift if self._scales else data
        return scaled.to(self.dtype).permute(0, 3, 1, 2)

    @property
    def _scales(self) -> bool:
        return (self.scale, self.shift) != (1.0, 0.0) or not self.data.is_floating_point()


def fits(channels: int, window: Window) -> bool:
    """Whether a convolution is one for these kernels: few channels under a small window."""
    return window.kernel > 1 and channels * window.kernel**2 <= MAX_DEPTH


def image_block(
    images: Images,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    *,
    activation: int = 0,
    slope: float = 1.0,
    into: Forward | None = None,
) -> Tensor:
    """Run the first convolution; arguments and result as of `implicit_gemm.multiply`."""
    data, count = images.data, images.count
    _, height, width, channels = data.shape
    p, q, columns = window.rows, window.columns, weight.shape[0]
    rows = count // groups * p * q
    depth = power_of_two(channels * window.kernel**2, 16, MAX_DEPTH)
    # Products of fp32 are many registers a value.
    wide = images.dtype.itemsize > 2
    block_m = power_of_two(rows, 16, 32 if wide else 128)
    block_n = power_of_two(columns, 16, 64)
    row_tiles = triton.cdiv(rows, block_m)
    column_tiles = triton.cdiv(columns, block_n)
    out = empty((count, p, q, columns), images.dtype, data.device)
    found = empty((groups, row_tiles, 2, columns), torch.float32, data.device) if into else None
    merged = into if mergeable(groups * row_tiles, columns, columns, block_n) else None
    launch(
        image_block_kernel,
        (groups * row_tiles * column_tiles,),
        data,
        images.index,
        weight,
        bias,
        out,
        found,
        arrival_counters(column_tiles, data) if merged else None,
        *(merged.pointers if merged else (None,) * 6),
        rows,
        height,
        width,
        p,
        q,
        columns,
        window.before,
        row_tiles,
        *weight_strides(weight, transposed=False, swapped=False),
        **_loading(images, window),
        HAS_BIAS=bias is not None,
        STATISTICS=into is not None,
        EPILOGUE=1 if activation else 0,
        ACTIVATION=activation,
        SLOPE=float(slope),
        MERGE=merged is not None,
        **(merged.constants if merged else {"EPS": 0.0, "MOMENTUM": 0.0}),
        PRECISION=precision(images.dtype),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        DEPTH=depth,
        num_warps=4,
        read=(_gathered(images), weight, bias, *((found, *merged.read) if merged else ())),
        written=(out, found, *(merged.written if merged else ())),
    )
    if found is not None and into is not None and merged is None:
        into.finalize(Tiles(found, block_m, row_tiles, rows), rows)
    return out


def image_weight_gradient(
    images: Images,
    g: Tensor,
    y: Tensor | None,
    coefficients: Tensor | None,
    weight: Tensor,
    window: Window,
    groups: int,
) -> Tensor:
    """Its weight's gradient; arguments and result as of `weight_gradient`."""
    data, count = images.data, images.count
    _, height, width, channels = data.shape
    p, q, columns = window.rows, window.columns, weight.shape[0]
    rows = count // groups * p * q
    size = channels * window.kernel**2
    wide = g.element_size() > 2
    block_m = 32 if wide else 64
    block_k = power_of_two(rows, 16, 16 if wide else 64)
    wanted = max(1, min(machine_of(data.device).processors, rows * groups // (4 * block_k)))
    tile = GemmTile(block_m, size, block_k, splits=wanted)
    group_steps, steps, chunk, splits = cut_steps(rows, groups, tile)
    partial = empty((splits, columns, size), torch.float32, data.device)
    shape = (columns, window.kernel, window.kernel, channels)
    out = empty(shape, weight.dtype, data.device)
    column_tiles = triton.cdiv(columns, block_m)
    launch(
        image_weight_gradient_kernel,
        (column_tiles, 1, splits),
        data,
        images.index,
        g,
        y,
        coefficients,
        out,
        partial,
        arrival_counters(column_tiles, data),
        rows,
        height,
        width,
        p,
        q,
        columns,
        window.before,
        group_steps,
        steps,
        chunk,
        **_loading(images, window),
        NORM=y is not None,
        PRECISION=precision(g.dtype),
        BLOCK_M=block_m,
        BLOCK_K=block_k,
        DEPTH=power_of_two(size, 16, MAX_DEPTH),
        num_warps=4,
        read=(_gathered(images), g, y, coefficients, partial),
        written=(partial, out),
    )
    return out.permute(0, 3, 1, 2)


def _loading(images: Images, window: Window) -> dict[str, Any]:
    """How the kernels load what is under a window."""
    return {
        "C": images.data.shape[3],
        "STRIDE": window.stride,
        "KERNEL": window.kernel,
        "INDEXED": images.index is not None,
        "SCALE": float(images.scale),
        "SHIFT": float(images.shift),
    }


def _gathered(images: Images) -> Tensor:
    """As many images as are read, to be weighed."""
    return images.data[:1].expand(images.count, -1, -1, -1)
