"""The product of every map and every data gradient: the host side of `device.gather_gemm`."""

import torch
import triton
from torch import Tensor

from fastinfogan.kernels.device.gather_gemm import finish_splits_kernel, gather_gemm_kernel
from fastinfogan.kernels.geometry import Gather, weight_strides
from fastinfogan.kernels.launch import launch
from fastinfogan.kernels.maps import ACTIVATIONS, Deferred, Tiles
from fastinfogan.kernels.tuning import GemmTile, gather_tile, precision

_FORWARD, _ACTIVATED, _BACKWARD, _PARTIAL = 0, 1, 2, 3


def multiply(
    operand: Deferred,
    weight: Tensor,
    gather: Gather,
    groups: int,
    *,
    backward: bool = False,
    bias: Tensor | None = None,
    tiles: bool = False,
    activation: str = "none",
    slope: float = 1.0,
    before: Deferred | None = None,
    tile: GemmTile | None = None,
) -> tuple[Tensor, Tiles | None]:
    """Run the product of `gather_gemm` over a window.

    Args:
        operand: what is gathered.
        weight: in torch's layout, any strides.
        gather: the layer's.
        groups: statistics groups.
        backward: whether this is the layer's data gradient.
        bias: (Cout,) or None.
        tiles: whether per-tile numbers are wanted.
        activation: behind a forward product, from `ACTIVATIONS`.
        slope: of "rectifier".
        before: for a data gradient, the block before, whose act' and sums are formed.
        tile: how to cut it; None for the table's.

    Returns:
        The map, in the operand's dtype, and its tiles if asked for.
    """
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
    row_tiles = triton.cdiv(rows, tile.m)
    count = row_tiles * gather.phases**2
    out = torch.empty((images, out_height, out_width, columns), dtype=x.dtype, device=x.device)
    found = (
        Tiles(
            torch.empty((groups, count, 2, columns), dtype=torch.float32, device=x.device),
            tile.m,
            row_tiles,
            rows,
        )
        if tiles
        else None
    )
    forward = _FORWARD if activation == "none" else _ACTIVATED
    epilogue = forward if before is None else _BACKWARD
    behind = {
        "HAS_BIAS": bias is not None,
        "STATISTICS": tiles,
        "ACTIVATION": ACTIVATIONS.index(activation),
        "OUT_SLOPE": float(slope if before is None else before.slope),
        "BEFORE_NORM": before is not None and before.params is not None,
    }
    tensors = (
        bias,
        out,
        found.data if found else None,
        before.x if before else None,
        before.params if before else None,
    )
    partial = (
        torch.empty((splits, images, columns), dtype=torch.float32, device=x.device)
        if splits > 1
        else None
    )
    column_tiles = triton.cdiv(columns, tile.n)
    features_out = before.features if before else columns
    nothing = {"HAS_BIAS": False, "STATISTICS": False}
    launch(
        gather_gemm_kernel,
        (groups * row_tiles * column_tiles, gather.phases**2, splits),
        x,
        operand.y,
        operand.params,
        weight,
        *(tensors if partial is None else (None, partial, None, None, None)),
        images // groups,
        images,
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
        EPILOGUE=epilogue if partial is None else _PARTIAL,
        **(behind if partial is None else behind | nothing),
        PRECISION=precision(x.dtype),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        num_warps=tile.warps,
        num_stages=tile.stages,
        read=(x, operand.y, operand.params, weight)
        + ((bias, before.x if before else None, tensors[4]) if partial is None else ()),
        written=(out, tensors[2]) if partial is None else (partial,),
    )
    if partial is not None:
        launch(
            finish_splits_kernel,
            (groups * row_tiles * column_tiles,),
            partial,
            *tensors,
            images // groups,
            images,
            columns,
            count,
            features_out,
            splits,
            EPILOGUE=epilogue,
            **behind,
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            num_warps=4,
            read=(partial, bias, tensors[3], tensors[4]),
            written=(out, tensors[2]),
        )
    return out, found
