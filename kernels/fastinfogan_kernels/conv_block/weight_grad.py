"""Launch the weight gradient of a layer."""

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.geometry import ConvGeometry
from fastinfogan_kernels.conv_block.launch_table import GemmTile, weight_gradient_tile
from fastinfogan_kernels.conv_block.weight_grad_kernel import weight_gradient_kernel
from fastinfogan_kernels.runtime.arrival_counters import arrival_counters
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.machine import precision
from fastinfogan_kernels.runtime.workspace import empty


def weight_gradient(
    operand: Deferred,
    gradient: Deferred,
    weight: Tensor,
    gather: ConvGeometry,
    groups: int,
    *,
    tile: GemmTile | None = None,
) -> Tensor:
    """The gradient of a layer's weight, in the weight's shape and dtype and channels_last memory.

    Args:
        operand: the layer's input, as it was loaded.
        gradient: dy, as it is formed.
        weight: the layer's, for shape and dtype.
        gather: the layer's.
        groups: statistics groups.
        tile: how to cut it; None for the table's.
    """
    direct, gathered = (operand, gradient) if gather.transposed else (gradient, operand)
    images, p, q, rows = direct.x.shape
    _, height, width, columns = gathered.x.shape
    kernel = gather.window.kernel
    positions = images // groups * p * q
    loaded = direct.loaded + gathered.loaded
    tile = tile or weight_gradient_tile(
        direct.x, positions * groups, rows, columns, kernel**2, loaded
    )
    group_steps, steps, chunk, splits = cut_steps(positions, groups, tile)
    out = empty((rows, kernel, kernel, columns), weight.dtype, weight.device)
    partial = empty((splits, *out.shape), torch.float32, out.device) if splits > 1 else None
    tiles = triton.cdiv(rows, tile.m) * triton.cdiv(columns, tile.n)
    launch(
        weight_gradient_kernel,
        (tiles, kernel**2, splits),
        direct.x,
        direct.y,
        direct.params,
        gathered.x,
        gathered.y,
        gathered.params,
        out,
        partial,
        arrival_counters(tiles * kernel**2, out) if splits > 1 else None,
        images // groups,
        p,
        q,
        rows,
        height,
        width,
        columns,
        gather.window.before,
        out.numel(),
        group_steps,
        steps,
        chunk,
        direct.features,
        gathered.features,
        STRIDE=gather.window.stride,
        KERNEL=kernel,
        D_PROLOGUE=direct.prologue,
        D_NORM=direct.params is not None,
        D_SLOPE=float(direct.slope),
        D_PIXEL=direct.per_pixel,
        G_PROLOGUE=gathered.prologue,
        G_NORM=gathered.params is not None,
        G_SLOPE=float(gathered.slope),
        G_PIXEL=gathered.per_pixel,
        PRECISION=precision(direct.x.dtype),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **tile.limits,
        read=(*direct.tensors, *gathered.tensors, partial),
        written=(partial, out),
    )
    return out.view(weight.shape) if weight.dim() == 2 else out.permute(0, 3, 1, 2)


def cut_steps(positions: int, groups: int, tile: GemmTile) -> tuple[int, int, int, int]:
    """Steps in a statistics group, in all, and in a split; and the number of splits."""
    group_steps = triton.cdiv(positions, tile.k)
    steps = group_steps * groups
    chunk = triton.cdiv(steps, tile.splits)
    return group_steps, steps, chunk, triton.cdiv(steps, chunk)
