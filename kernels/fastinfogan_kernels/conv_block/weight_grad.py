"""The weight gradient of every map, and Adam's update by it: host of `device.weight_gradient`."""

from typing import Any

import torch
from torch import Tensor

from fastinfogan_kernels.adam.adam import Rates
from fastinfogan_kernels.adam.multi_tensor import Slot, require_alike
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.geometry import ConvGeometry
from fastinfogan_kernels.conv_block.launch_table import GemmTile, weight_gradient_tile
from fastinfogan_kernels.conv_block.weight_grad_kernel import weight_gradient_kernel
from fastinfogan_kernels.errors import InputError
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
    out = _multiply(operand, gradient, weight, gather, groups, tile, None)
    return out.view(weight.shape) if weight.dim() == 2 else out.permute(0, 3, 1, 2)


def weight_update(
    operand: Deferred,
    gradient: Deferred,
    slot: Slot,
    rates: Rates,
    gather: ConvGeometry,
    groups: int,
    *,
    tile: GemmTile | None = None,
) -> None:
    """Adam's update of a layer's weight by its gradient, which is never written.

    The layer's data gradient must have been taken, for it needs the weight as it was. The step
    counter is read and not moved on: who moves it counts all of a network's, as `optim.Adam` does.

    Args:
        operand: the layer's input, as it was loaded.
        gradient: dy, as it is formed.
        slot: the weight, fp32, in channels_last memory if it is four-dimensional, its moments and
            its copy; no gradient.
        rates: Adam's numbers.
        gather: the layer's.
        groups: statistics groups.
        tile: how to cut it; None for the table's.

    Raises:
        InputError: the weight's memory is in another order, or its moments' or its copy's.
    """
    weight = slot.parameter
    rows = weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1)
    if not rows.is_contiguous() or weight.dtype != torch.float32:
        raise InputError(
            f"a weight of shape {tuple(weight.shape)}, {weight.dtype}, strides {weight.stride()} "
            "cannot be updated in the epilogue of its gradient; it must be fp32 in channels_last "
            "memory"
        )
    require_alike(slot)
    _multiply(operand, gradient, weight, gather, groups, tile, (slot, rates))


def _multiply(
    operand: Deferred, gradient: Deferred, weight: Tensor, gather: ConvGeometry, groups: int,
    tile: GemmTile | None, update: tuple[Slot, Rates] | None,
) -> Tensor:  # fmt: skip
    """The gradient, (direct channels, tap rows, tap columns, gathered channels); or the weight."""
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
    out = _buffer((rows, kernel, kernel, columns), weight, update)
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
        *_adam_arguments(update),
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
        LR_ON_DEVICE=_lr_on_device(update),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **tile.limits,
        read=(*direct.tensors, *gathered.tensors, partial, *_moved(update)),
        written=(partial, *(_moved(update) + _copied(update) if update else (out,))),
    )
    return out


def cut_steps(positions: int, groups: int, tile: GemmTile) -> tuple[int, int, int, int]:
    """Steps in a statistics group, in all, and in a split; and the number of splits."""
    group_steps = triton.cdiv(positions, tile.k)
    steps = group_steps * groups
    chunk = triton.cdiv(steps, tile.splits)
    return group_steps, steps, chunk, triton.cdiv(steps, chunk)


def _buffer(shape: tuple[int, ...], like: Tensor, update: tuple[Slot, Rates] | None) -> Tensor:
    """What the kernel writes: the weight itself if it updates it, seen in memory order."""
    if update is None:
        return empty(shape, like.dtype, like.device)
    weight = update[0].parameter
    return (weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1)).detach().view(shape)


def _adam_arguments(update: tuple[Slot, Rates] | None) -> tuple[Any, ...]:
    if update is None:
        return (None,) * 12
    slot, rates = update
    return slot.exp_avg, slot.exp_avg_sq, slot.copy, slot.step, rates.lr, *rates.scalars


def _lr_on_device(update: tuple[Slot, Rates] | None) -> bool:
    return update is not None and isinstance(update[1].lr, Tensor)


def _moved(update: tuple[Slot, Rates] | None) -> tuple[Tensor, ...]:
    """What an update reads and writes."""
    if update is None:
        return ()
    return update[0].parameter, update[0].exp_avg, update[0].exp_avg_sq


def _copied(update: tuple[Slot, Rates] | None) -> tuple[Tensor | None, ...]:
    return () if update is None else (update[0].copy,)
