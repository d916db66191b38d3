"""The product of every map and every data gradient: the host side of `device.implicit_gemm`."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.bn_stats import Backward, Forward, mergeable
from fastinfogan_kernels.conv_block.deferred import ACTIVATIONS, Deferred, Tiles
from fastinfogan_kernels.conv_block.geometry import ConvGeometry, weight_strides
from fastinfogan_kernels.conv_block.implicit_gemm_kernel import implicit_gemm_kernel
from fastinfogan_kernels.conv_block.launch_table import GemmTile, gather_tile
from fastinfogan_kernels.runtime.arrival_counters import arrival_counters
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.machine import precision
from fastinfogan_kernels.runtime.workspace import empty

_FORWARD, _ACTIVATED, _BACKWARD = 0, 1, 2


class Epilogue(NamedTuple):
    """What stands behind a product, on its tiles in registers.

    Attributes:
        bias: (Cout,) or None.
        activation: of a forward product, from `ACTIVATIONS`.
        slope: of "rectifier".
        before: for a data gradient, the block before, whose act' and sums are formed.
        tiles: whether per-tile numbers are wanted; they are, if `into` is given.
        into: what the tiles become: batch norm's numbers, or on the way back those of the block
            before.
    """

    bias: Tensor | None = None
    activation: str = "none"
    slope: float = 1.0
    before: Deferred | None = None
    tiles: bool = False
    into: Forward | Backward | None = None


NOTHING = Epilogue()


def multiply(
    operand: Deferred,
    weight: Tensor,
    gather: ConvGeometry,
    groups: int,
    behind: Epilogue = NOTHING,
    *,
    backward: bool = False,
    tile: GemmTile | None = None,
) -> tuple[Tensor, Tiles | None]:
    """Run the product of `implicit_gemm` over a window.

    Args:
        operand: what is gathered.
        weight: in torch's layout, any strides.
        gather: the layer's.
        groups: statistics groups.
        behind: what is done to the product before it is written.
        backward: whether this is the layer's data gradient.
        tile: how to cut it; None for the table's.

    Returns:
        The map, in the operand's dtype, and its tiles if asked for.
    """
    bias, activation, slope, before, tiles, into = behind
    x = operand.x
    images, height, width, channels = x.shape
    transposed_weight = gather.transposed
    gather = gather.reversed if backward else gather
    out_height, out_width = gather.result
    p, q = gather.grid
    strides = weight_strides(weight, transposed=transposed_weight, swapped=backward)
    columns = weight.shape[0 if transposed_weight == backward else 1]
    rows = images // groups * p * q
    flat = p * q * gather.phases == 1 and gather.taps == 1
    tile = tile or gather_tile(
        x,
        weight,
        rows * groups,
        columns,
        gather.phases**2,
        operand.loaded,
        flat=flat,
    )
    splits = tile.splits if flat else 1
    chunk = triton.cdiv(triton.cdiv(channels, splits), tile.k) * tile.k
    splits = triton.cdiv(channels, chunk)
    row_tiles, column_tiles = triton.cdiv(rows, tile.m), triton.cdiv(columns, tile.n)
    count = row_tiles * gather.phases**2
    features_out = columns if before is None else before.features
    merge = False
    if into is not None:
        tiles, features_out = True, into.features
        merge = mergeable(groups * count, columns, features_out, tile.n)

    def scratch(*shape: int) -> Tensor:
        return empty(shape, torch.float32, x.device)

    out = empty((images, out_height, out_width, columns), x.dtype, x.device)
    found = Tiles(scratch(groups, count, 2, columns), tile.m, row_tiles, rows) if tiles else None
    partial = scratch(splits, images, columns) if splits > 1 else None
    map_before = (before.x, before.params) if before else (None, None)
    forward = into if merge and isinstance(into, Forward) else None
    back = into if merge and isinstance(into, Backward) else None
    read: tuple[Tensor | None, ...] = (*operand.tensors, weight, bias, *map_before, partial)
    written: tuple[Tensor | None, ...] = (out, found.data if found else None, partial)
    if into is not None and merge:
        read, written = (*read, written[1], *into.read), (*written, *into.written)
    launch(
        implicit_gemm_kernel,
        (groups * row_tiles * column_tiles, gather.phases**2, splits),
        x,
        operand.y,
        operand.params,
        weight,
        bias,
        out,
        found.data if found else None,
        *map_before,
        partial,
        arrival_counters(column_tiles * (1 + groups * row_tiles), x)
        if merge or splits > 1
        else None,
        *(forward.pointers if forward else (None,) * 6),
        *(back.pointers if back else (None,) * 5),
        images // groups,
        out.numel(),
        height,
        width,
        channels,
        out_height,
        out_width,
        columns,
        p,
        q,
        count,
        gather.window.before,
        operand.features,
        features_out,
        chunk,
        *strides,
        TRANSPOSED=gather.transposed,
        STRIDE=gather.window.stride,
        KERNEL=gather.window.kernel,
        TAPS=gather.taps,
        PROLOGUE=operand.prologue,
        IN_NORM=operand.params is not None,
        IN_SLOPE=float(operand.slope),
        IN_PIXEL=operand.per_pixel,
        EPILOGUE=_BACKWARD if before else _FORWARD if activation == "none" else _ACTIVATED,
        HAS_BIAS=bias is not None,
        STATISTICS=tiles,
        ACTIVATION=ACTIVATIONS.index(activation),
        OUT_SLOPE=float(before.slope if before else slope),
        BEFORE_NORM=before is not None and before.params is not None,
        MERGE=merge,
        **(forward.constants if forward else {"EPS": 0.0, "MOMENTUM": 0.0}),
        PRECISION=precision(x.dtype),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **tile.limits,
        read=read,
        written=written,
    )
    if found is not None and into is not None and not merge:
        values = out.numel() // into.features // groups
        if isinstance(into, Forward):
            into.finalize(found, values)
        else:
            into.finalize(found.data, values)
    return out, found
