"""The passes at a chain's ends and around other libraries: the host side of `device.pointwise`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block import elementwise_kernels
from fastinfogan_kernels.conv_block.bn_stats import Backward, mergeable
from fastinfogan_kernels.conv_block.deferred import ACTIVATIONS, Deferred, Tiles
from fastinfogan_kernels.conv_block.launch_table import GemmTile, matrix_tile
from fastinfogan_kernels.runtime.arrival_counters import arrival_counters
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.workspace import empty, empty_like


def materialize(operand: Deferred, groups: int, activation: str = "rectifier") -> Tensor:
    """Write act(scale * y + shift) out, as a map."""
    y = operand.x
    out = empty_like(y)
    cut = _Cut.of(y, operand.features, groups)
    cut.launch(
        elementwise_kernels.materialize_kernel,
        (y, operand.params),
        (out,),
        **_behind(operand, activation),
    )
    return out


def act_backward_reduce(
    dout: Tensor,
    operand: Deferred,
    groups: int,
    activation: str = "rectifier",
    into: Backward | None = None,
) -> tuple[Tensor, Tiles]:
    """Form g = dout * act'(z) and its tiles' sums.

    Args:
        dout: gradient of what `materialize` wrote; a map.
        operand: the block's y and parameters.
        groups: statistics groups.
        activation: from `ACTIVATIONS`.
        into: what the sums become: the block's coefficients and gradients.

    Returns:
        g, and its tiles' sums: fp32 (groups, tiles, 2, features).
    """
    y = operand.x
    g = empty_like(y)
    features = operand.features
    cut = _Cut.of(y, features, groups)
    sums = cut.numbers(y.device)
    merged = into if mergeable(groups * cut.tiles, features, features, cut.tile.n) else None
    gamma, rstd = merged.read if merged else (None, None)
    cut.launch(
        elementwise_kernels.act_backward_reduce_kernel,
        (dout, y, operand.params, gamma, rstd),
        (g, sums, *(merged.written if merged else (None,) * 3)),
        arrival_counters(triton.cdiv(features, cut.tile.n), y) if merged else None,
        **_behind(operand, activation),
        MERGE=merged is not None,
    )
    found = Tiles(sums, cut.tile.m, cut.tiles, cut.rows)
    if into is not None and merged is None:
        into.finalize(sums, cut.rows)
    return g, found


def bn_backward_apply(gradient: Deferred, groups: int) -> Tensor:
    """Write dy = A * g + B * y + C out, as a map."""
    g = gradient.x
    dy = empty_like(g)
    cut = _Cut.of(g, gradient.features, groups)
    cut.launch(
        elementwise_kernels.bn_backward_apply_kernel, (g, gradient.y, gradient.params), (dy,)
    )
    return dy


def tile_statistics(y: Tensor, features: int, groups: int) -> Tiles:
    """Each tile's (mean, M2) of a map that another library computed."""
    cut = _Cut.of(y, features, groups)
    data = cut.numbers(y.device)
    cut.launch(elementwise_kernels.tile_statistics_kernel, (y,), (data,))
    return Tiles(data, cut.tile.m, cut.tiles, cut.rows)


class _Cut(NamedTuple):
    """A map as a matrix, whose columns are what parameters are kept for, and how it is cut.

    Attributes:
        groups: statistics groups.
        rows: of a group.
        columns: features.
        tiles: of rows, in a group.
        tile: how large they are.
    """

    groups: int
    rows: int
    columns: int
    tiles: int
    tile: GemmTile

    @classmethod
    def of(cls, y: Tensor, features: int, groups: int) -> "_Cut":
        rows = y.numel() // features // groups
        tile = matrix_tile(y, rows, features)
        return cls(groups, rows, features, triton.cdiv(rows, tile.m), tile)

    def numbers(self, device: torch.device) -> Tensor:
        """Room for two numbers per tile and feature: fp32 (groups, tiles, 2, columns)."""
        shape = (self.groups, self.tiles, 2, self.columns)
        return empty(shape, torch.float32, device)

    def launch(
        self,
        kernel: Any,
        read: tuple[Tensor | None, ...],
        written: tuple[Tensor | None, ...],
        *more: Tensor | None,
        **parameters: Any,
    ) -> None:
        """Launch a kernel of `device.pointwise`: what is read, written and more, then the cut."""
        launch(
            kernel,
            (self.groups * self.tiles * triton.cdiv(self.columns, self.tile.n),),
            *read,
            *written,
            *more,
            self.rows,
            self.columns,
            self.tiles,
            BLOCK_M=self.tile.m,
            BLOCK_N=self.tile.n,
            num_warps=self.tile.warps,
            **self.tile.limits,
            read=read,
            written=written,
            **parameters,
        )


def _behind(operand: Deferred, activation: str) -> dict[str, Any]:
    return {
        "NORM": operand.params is not None,
        "ACTIVATION": ACTIVATIONS.index(activation),
        "SLOPE": float(operand.slope),
    }
