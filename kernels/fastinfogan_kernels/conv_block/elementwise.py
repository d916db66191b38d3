"""Elementwise passes: at the ends of a chain, and around ATen's convolution.

Inside a chain activations are formed while loading, and their backward in the next data gradient.
These passes run where a chain ends, where ATen computes a convolution, and in backward of a fully
connected layer that forms a map and has no batch norm: its sums are over the images of a pixel,
across tiles.

    materialize          out = act(scale * y + shift)
    act_backward_reduce  g = dout * act'(scale * y + shift), and each tile's sums of g and of
                         g * (y - mean); without batch norm y is the activated output, from which
                         act' follows as well; with MERGE the last program of some columns finalizes
                         the sums as in `bn_stats`
    bn_backward_apply    dy = A * g + B * y + C
    tile_statistics      each tile's (mean, M2) of y

All see a matrix (rows, COLUMNS), rows cut into equal statistics groups.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.bn_stats import (
    BatchNormBackward,
    finalize_grads,
    mergeable,
)
from fastinfogan_kernels.conv_block.deferred import (
    ACTIVATIONS,
    GRADIENT,
    PLAIN,
    Deferred,
    TileStatistics,
    activate,
)
from fastinfogan_kernels.conv_block.launch_table import GemmTile, elementwise_tile
from fastinfogan_kernels.runtime.arrival_counters import arrival_counters, is_last
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty, empty_like


@triton.jit
def tile_of(ROWS, COLUMNS, TILES, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return a program's group, tile, columns and element offsets, with the masks of each."""
    column_tiles = tl.cdiv(COLUMNS, BLOCK_N)
    pid = tl.program_id(0)
    pid_n, pid_m = pid % column_tiles, pid // column_tiles
    group, tile = pid_m // TILES, pid_m % TILES
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    col = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = (m < ROWS)[:, None] & (col < COLUMNS)[None, :]
    at = (group * ROWS + m).to(tl.int64)[:, None] * COLUMNS + col[None, :]
    return group, tile, m < ROWS, col, col < COLUMNS, at, ok


@triton.jit
def materialize_kernel(
    y_ptr, params_ptr, out_ptr, ROWS, COLUMNS, TILES,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write a deferred feature map; see the module.

    params: fp32 (groups, 3, COLUMNS): scale, shift, mean.
    """
    group, _, _, col, col_ok, at, ok = tile_of(ROWS, COLUMNS, TILES, BLOCK_M, BLOCK_N)
    z = tl.load(y_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if NORM:
        params = params_ptr + group * 3 * COLUMNS + col
        scale = tl.load(params, mask=col_ok, other=0.0)
        shift = tl.load(params + COLUMNS, mask=col_ok, other=0.0)
        z = scale[None, :] * z + shift[None, :]
    z = activate(z, ACTIVATION, SLOPE)
    tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty), mask=ok)


@triton.jit
def act_backward_reduce_kernel(
    dout_ptr, y_ptr, params_ptr, gamma_ptr, rstd_ptr, g_ptr, tiles_ptr,
    coefficients_ptr, dgamma_ptr, dbeta_ptr, counters_ptr, ROWS, COLUMNS, TILES,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, MERGE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Form g and the sums of its tiles; see the module.

    tiles: fp32 (groups, TILES, 2, COLUMNS) out. counters: (column tiles,).
    """
    group, tile, _, col, col_ok, at, ok = tile_of(ROWS, COLUMNS, TILES, BLOCK_M, BLOCK_N)
    y = tl.load(y_ptr + at, mask=ok, other=0.0).to(tl.float32)
    g = tl.load(dout_ptr + at, mask=ok, other=0.0).to(tl.float32)
    z = y
    if NORM:
        params = params_ptr + group * 3 * COLUMNS + col
        scale = tl.load(params, mask=col_ok, other=0.0)
        shift = tl.load(params + COLUMNS, mask=col_ok, other=0.0)
        mean = tl.load(params + 2 * COLUMNS, mask=col_ok, other=0.0)
        z = scale[None, :] * y + shift[None, :]
    if ACTIVATION == 1:
        g = tl.where(z <= 0.0, g * SLOPE, g)
    if ACTIVATION >= 2:
        out = activate(z, ACTIVATION, SLOPE) if NORM else y
        g = g * (out * (1.0 - out) if ACTIVATION == 2 else 1.0 - out * out)
    stored = g.to(g_ptr.dtype.element_ty)
    tl.store(g_ptr + at, stored, mask=ok)
    v = tl.where(ok, stored.to(tl.float32), 0.0)
    to = tiles_ptr + (group * TILES + tile) * 2 * COLUMNS + col
    tl.store(to, tl.sum(v, axis=0), mask=col_ok)
    if NORM:
        tl.store(to + COLUMNS, tl.sum(v * (y - mean[None, :]), axis=0), mask=col_ok)
    else:
        tl.store(to + COLUMNS, tl.zeros((BLOCK_N,), tl.float32), mask=col_ok)
    if MERGE:
        column_tiles = tl.cdiv(COLUMNS, BLOCK_N)
        parts = tl.num_programs(0) // column_tiles
        if is_last(counters_ptr + tl.program_id(0) % column_tiles, parts):
            # The wider a tile, the fewer steps at once: no more registers than the pass needs.
            finalize_grads(
                col, col_ok, tiles_ptr, gamma_ptr, params_ptr, rstd_ptr, coefficients_ptr,
                dgamma_ptr, dbeta_ptr, parts // TILES, TILES, 1, ROWS, COLUMNS, NORM, 32,
                64 // BLOCK_N,
            )  # fmt: skip


@triton.jit
def bn_backward_apply_kernel(
    g_ptr, y_ptr, coefficients_ptr, dy_ptr, ROWS, COLUMNS, TILES,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Form dy; see the module. coefficients: fp32 (groups, 3, COLUMNS): A, B, C."""
    group, _, _, col, col_ok, at, ok = tile_of(ROWS, COLUMNS, TILES, BLOCK_M, BLOCK_N)
    g = tl.load(g_ptr + at, mask=ok, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + at, mask=ok, other=0.0).to(tl.float32)
    params = coefficients_ptr + group * 3 * COLUMNS + col
    a = tl.load(params, mask=col_ok, other=0.0)[None, :]
    b = tl.load(params + COLUMNS, mask=col_ok, other=0.0)[None, :]
    c = tl.load(params + 2 * COLUMNS, mask=col_ok, other=0.0)[None, :]
    tl.store(dy_ptr + at, (a * g + b * y + c).to(dy_ptr.dtype.element_ty), mask=ok)


@triton.jit
def tile_statistics_kernel(
    y_ptr, tiles_ptr, ROWS, COLUMNS, TILES, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Compute tile statistics; see the module. tiles: fp32 (groups, TILES, 2, COLUMNS) out."""
    group, tile, row_ok, col, col_ok, at, ok = tile_of(ROWS, COLUMNS, TILES, BLOCK_M, BLOCK_N)
    y = tl.load(y_ptr + at, mask=ok, other=0.0).to(tl.float32)
    mean = tl.sum(y, axis=0) / tl.sum(row_ok.to(tl.float32), axis=0)
    centred = tl.where(ok, y - mean[None, :], 0.0)
    to = tiles_ptr + (group * TILES + tile) * 2 * COLUMNS + col
    tl.store(to, mean, mask=col_ok)
    tl.store(to + COLUMNS, tl.sum(centred * centred, axis=0), mask=col_ok)


def launch_materialize(operand: Deferred, groups: int, activation: str = "leaky_relu") -> Tensor:
    """Write act(scale * y + shift) out, as a feature map."""
    y = operand.x
    out = empty_like(y)
    matrix = _Matrix.of(y, operand.features, groups)
    constants = _activation(operand, activation)
    matrix.launch(materialize_kernel, (y, operand.params), (out,), **constants)
    return out


def launch_act_backward_reduce(
    dout: Tensor,
    operand: Deferred,
    groups: int,
    activation: str = "leaky_relu",
    stats_out: BatchNormBackward | None = None,
) -> tuple[Tensor, TileStatistics]:
    """Form g = dout * act'(z) and its tiles' sums.

    Args:
        dout: gradient of what `materialize` writes; a feature map.
        operand: the block's y and parameters.
        groups: statistics groups.
        activation: from `ACTIVATIONS`.
        stats_out: where the finalized sums are written.

    Returns:
        g, and its tiles' sums: fp32 (groups, tiles, 2, features).
    """
    y, features = operand.x, operand.features
    g = empty_like(y)
    matrix = _Matrix.of(y, features, groups)
    sums = matrix.tile_statistics(y.device)
    merge = mergeable(groups * matrix.tiles, features, features, matrix.tile.n)
    merged = stats_out if merge else None
    gamma, rstd = merged.read if merged else (None, None)
    matrix.launch(
        act_backward_reduce_kernel,
        (dout, y, operand.params, gamma, rstd),
        (g, sums.data, *(merged.written if merged else (None,) * 3)),
        arrival_counters(triton.cdiv(features, matrix.tile.n), y) if merged else None,
        **_activation(operand, activation),
        MERGE=merged is not None,
    )
    if stats_out is not None and merged is None:
        stats_out.finalize(sums.data, matrix.rows)
    return g, sums


def launch_bn_backward_apply(gradient: Deferred, groups: int) -> Tensor:
    """Write dy = A * g + B * y + C out, as a feature map."""
    g = gradient.x
    dy = empty_like(g)
    matrix = _Matrix.of(g, gradient.features, groups)
    matrix.launch(bn_backward_apply_kernel, (g, gradient.y, gradient.params), (dy,))
    return dy


def launch_tile_statistics(y: Tensor, features: int, groups: int) -> TileStatistics:
    """Return each tile's (mean, M2) of a feature map that another library computed."""
    matrix = _Matrix.of(y, features, groups)
    tiles = matrix.tile_statistics(y.device)
    matrix.launch(tile_statistics_kernel, (y,), (tiles.data,))
    return tiles


def write_out(operand: Deferred, groups: int) -> Tensor:
    """Return a deferred map's values, for a kernel of another library; x itself if it has them."""
    if operand.prologue == PLAIN:
        return operand.x
    if operand.prologue == GRADIENT:
        return launch_bn_backward_apply(operand, groups)
    return launch_materialize(operand, groups)


class _Matrix(NamedTuple):
    """A feature map as a matrix with a column for each feature, and how it is tiled.

    Attributes:
        groups: statistics groups.
        rows: of a group.
        columns: features.
        tiles: of rows, in a group.
        tile: size of a tile.
    """

    groups: int
    rows: int
    columns: int
    tiles: int
    tile: GemmTile

    @classmethod
    def of(cls, y: Tensor, features: int, groups: int) -> "_Matrix":
        rows = y.numel() // features // groups
        tile = elementwise_tile(y, rows, features)
        return cls(groups, rows, features, triton.cdiv(rows, tile.m), tile)

    def tile_statistics(self, device: torch.device) -> TileStatistics:
        """Allocate two numbers per tile and feature."""
        data = empty((self.groups, self.tiles, 2, self.columns), torch.float32, device)
        return TileStatistics(data, self.tile.m, self.tiles, self.rows)

    def launch(
        self,
        kernel: Any,
        read: tuple[Tensor | None, ...],
        written: tuple[Tensor | None, ...],
        *more: Tensor | None,
        **constants: Any,
    ) -> None:
        """Launch a kernel whose arguments are what is read, written and more, then the sizes."""
        launch(
            kernel,
            (self.groups * self.tiles * triton.cdiv(self.columns, self.tile.n),),
            *read, *written, *more, self.rows, self.columns, self.tiles,
            BLOCK_M=self.tile.m, BLOCK_N=self.tile.n, num_warps=self.tile.warps,
            **self.tile.limits, read=read, written=written, **constants,
        )  # fmt: skip


def _activation(operand: Deferred, activation: str) -> dict[str, Any]:
    return {
        "NORM": operand.params is not None,
        "ACTIVATION": ACTIVATIONS.index(activation),
        "SLOPE": float(operand.slope),
    }


@register("materialize")
def materialize(
    y: Tensor, params: Tensor | None, groups: int, activation: str, slope: float
) -> Tensor:
    """Write act(scale * y + shift) out."""
    return launch_materialize(Deferred(y, params, slope), groups, activation)


@register("act_backward_reduce")
def act_backward_reduce(
    dout: Tensor, y: Tensor, params: Tensor | None, groups: int, activation: str, slope: float,
    gamma: Tensor | None, rstd: Tensor | None, bias: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Return g = dout * act'(z), and the finalized sums.

    With gamma and rstd these are dy's coefficients, dgamma and dbeta; with a bias its gradient;
    with neither the tiles' sums, fp32 (groups, tiles, 2, features).
    """
    stats_out = BatchNormBackward.of_block(gamma, params, rstd, bias)
    operand = Deferred(y, params, slope)
    g, tiles = launch_act_backward_reduce(dout, operand, groups, activation, stats_out)
    return g, [tiles.data] if stats_out is None else stats_out.results
