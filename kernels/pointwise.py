"""The passes at a chain's ends and around other libraries: the host side of `device.pointwise`."""

import torch
import triton
from torch import Tensor

from fastinfogan.kernels.device import pointwise
from fastinfogan.kernels.launch import launch
from fastinfogan.kernels.maps import ACTIVATIONS, Deferred, Tiles
from fastinfogan.kernels.tuning import GemmTile, matrix_tile


def materialize(
    operand: Deferred, groups: int, activation: str = "rectifier", out: Tensor | None = None
) -> Tensor:
    """Write act(scale * y + shift) out, as a map."""
    y = operand.x
    out = torch.empty_like(y) if out is None else out
    rows, columns, tile = _matrix(y, operand.features, groups)
    tiles = triton.cdiv(rows, tile.m)
    launch(
        pointwise.materialize_kernel,
        (groups * tiles * triton.cdiv(columns, tile.n),),
        y,
        operand.params,
        out,
        rows,
        columns,
        tiles,
        NORM=operand.params is not None,
        ACTIVATION=ACTIVATIONS.index(activation),
        SLOPE=float(operand.slope),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        num_warps=tile.warps,
        read=(y, operand.params),
        written=(out,),
    )
    return out


def enter_gradient(
    dout: Tensor, operand: Deferred, groups: int, activation: str = "rectifier"
) -> tuple[Tensor, Tensor]:
    """Form g = dout * act'(z) and its tiles' sums.

    Args:
        dout: gradient of what `materialize` wrote; a map.
        operand: the block's y and parameters.
        groups: statistics groups.
        activation: from `ACTIVATIONS`.

    Returns:
        g, and sums fp32 (groups, tiles, 2, features).
    """
    y = operand.x
    rows, columns, tile = _matrix(y, operand.features, groups)
    tiles = triton.cdiv(rows, tile.m)
    g = torch.empty_like(y)
    sums = torch.empty((groups, tiles, 2, columns), dtype=torch.float32, device=y.device)
    launch(
        pointwise.enter_gradient_kernel,
        (groups * tiles * triton.cdiv(columns, tile.n),),
        dout,
        y,
        operand.params,
        g,
        sums,
        rows,
        columns,
        tiles,
        NORM=operand.params is not None,
        ACTIVATION=ACTIVATIONS.index(activation),
        SLOPE=float(operand.slope),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        num_warps=tile.warps,
        read=(dout, y, operand.params),
        written=(g, sums),
    )
    return g, sums


def form_gradient(gradient: Deferred, groups: int) -> Tensor:
    """Write dy = A * g + B * y + C out, as a map."""
    g = gradient.x
    dy = torch.empty_like(g)
    rows, columns, tile = _matrix(g, gradient.features, groups)
    tiles = triton.cdiv(rows, tile.m)
    launch(
        pointwise.form_gradient_kernel,
        (groups * tiles * triton.cdiv(columns, tile.n),),
        g,
        gradient.y,
        gradient.params,
        dy,
        rows,
        columns,
        tiles,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        num_warps=tile.warps,
        read=gradient.tensors,
        written=(dy,),
    )
    return dy


def tile_statistics(y: Tensor, features: int, groups: int) -> Tiles:
    """Each tile's (mean, M2) of a map that another library computed."""
    rows, columns, tile = _matrix(y, features, groups)
    tiles = triton.cdiv(rows, tile.m)
    data = torch.empty((groups, tiles, 2, columns), dtype=torch.float32, device=y.device)
    launch(
        pointwise.tile_statistics_kernel,
        (groups * tiles * triton.cdiv(columns, tile.n),),
        y,
        data,
        rows,
        columns,
        tiles,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        num_warps=tile.warps,
        read=(y,),
        written=(data,),
    )
    return Tiles(data, tile.m, tiles, rows)


def _matrix(y: Tensor, features: int, groups: int) -> tuple[int, int, GemmTile]:
    """A map as (rows of a group, columns), the columns being what parameters are kept for."""
    rows = y.numel() // features // groups
    return rows, features, matrix_tile(rows, features)
