"""The weight gradient of every map: the host side of `device.weight_gradient`."""

import torch
import triton
from torch import Tensor

from fastinfogan.kernels.device.weight_gradient import sum_splits_kernel, weight_gradient_kernel
from fastinfogan.kernels.geometry import Gather
from fastinfogan.kernels.launch import launch
from fastinfogan.kernels.maps import Deferred
from fastinfogan.kernels.tuning import GemmTile, precision, weight_gradient_tile


def weight_gradient(
    operand: Deferred,
    gradient: Deferred,
    weight: Tensor,
    gather: Gather,
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
    shape = (rows, kernel, kernel, columns)
    written = torch.empty(
        (splits, *shape),
        dtype=weight.dtype if splits == 1 else torch.float32,
        device=weight.device,
    )
    launch(
        weight_gradient_kernel,
        (triton.cdiv(rows, tile.m) * triton.cdiv(columns, tile.n), kernel**2, splits),
        direct.x,
        direct.y,
        direct.params,
        gathered.x,
        gathered.y,
        gathered.params,
        written,
        images // groups,
        p,
        q,
        rows,
        height,
        width,
        columns,
        gather.window.before,
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
        read=(*direct.tensors, *gathered.tensors),
        written=(written,),
    )
    out = written[0] if splits == 1 else sum_splits(written, shape, weight.dtype)
    return out.view(weight.shape) if weight.dim() == 2 else out.permute(0, 3, 1, 2)


def cut_steps(positions: int, groups: int, tile: GemmTile) -> tuple[int, int, int, int]:
    """Steps in a statistics group, in all, and in a split; and the number of splits."""
    group_steps = triton.cdiv(positions, tile.k)
    steps = group_steps * groups
    chunk = triton.cdiv(steps, tile.splits)
    return group_steps, steps, chunk, triton.cdiv(steps, chunk)


def sum_splits(partial: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Add partial sums, fp32 (splits, ...), in order."""
    out = torch.empty(shape, dtype=dtype, device=partial.device)
    launch(
        sum_splits_kernel,
        (triton.cdiv(out.numel(), 1024),),
        partial,
        out,
        out.numel(),
        partial.shape[0],
        BLOCK=1024,
        num_warps=4,
        read=(partial,),
        written=(out,),
    )
    return out
