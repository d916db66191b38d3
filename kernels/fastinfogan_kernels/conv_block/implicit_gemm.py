"""The implicit GEMM of every layer's forward pass and data gradient.

    out[n, p, q, o] = sum over taps t, channels i of  W[t, i, o] * pro(x[n, at(p, q, t), i])

PROLOGUE, formed while loading, never stored:
    0 plain     x
    1 activate  lrelu(scale * x + shift)     the previous block's activation; x is its raw y
    2 gradient  A * g + B * y + C            batch norm's backward; x is g, and y is read beside it

EPILOGUE, on the product's tile in registers:
    0 forward   + bias, round, store; each tile's (mean, M2) per channel of the rounded values
    1 activated + bias, activation, store    a last layer without batch norm, or in evaluation
    2 gradient  * lrelu'(scale * y + shift) of the previous block, round, store; each tile's sums of
                g and of g * (y - mean), from which batch norm's backward follows

The depth may be cut into splits, whose partial sums in fp32 the last program of a tile adds in
order. With MERGE the last program of a block of columns finalizes the tiles' numbers as in
`bn_stats`: of this block in a forward pass, of the previous block in a data gradient.

Layout: NHWC everywhere; scale, shift, mean, A, B, C in fp32, one set per statistics group (the
batch is cut into `groups` equal parts). See `layers` for at(p, q, t). fp32 accumulation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.bn_stats import (
    BatchNormBackward,
    BatchNormForward,
    finalize_grads,
    finalize_stats,
    mergeable,
)
from fastinfogan_kernels.conv_block.deferred import (
    ACTIVATIONS,
    Deferred,
    TileStatistics,
    activate,
    leaky_relu,
)
from fastinfogan_kernels.conv_block.launch_table import GemmTile, gemm_tile
from fastinfogan_kernels.conv_block.layers import ConvGeometry, weight_strides
from fastinfogan_kernels.runtime.arrival_counters import arrival_counters, is_last, sum_splits
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.machine import precision
from fastinfogan_kernels.runtime.workspace import empty

_FORWARD, _ACTIVATED, _GRADIENT = 0, 1, 2


@triton.jit
def finish_tile(
    acc, row, row_ok, col, col_ok, feature, group, tile, COUT, TILES, FEATURES,
    bias_ptr, out_ptr, tiles_ptr, prev_ptr, prev_params_ptr,
    EPILOGUE: tl.constexpr, HAS_BIAS: tl.constexpr, STATISTICS: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, PREV_NORM: tl.constexpr,
):  # fmt: skip
    """Finish one tile (rows x columns) of the product, in fp32.

    feature: (1, columns), index into the parameters of the previous block.
    tiles_ptr: fp32 (groups, TILES, 2, COUT).
    prev_params_ptr: fp32 (groups, 3, FEATURES): scale, shift, mean.
    """
    ok = row_ok[:, None] & col_ok[None, :]
    at = row[:, None].to(tl.int64) * COUT + col[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + col, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    if EPILOGUE == 1:
        acc = activate(acc, ACTIVATION, SLOPE)
    if EPILOGUE == 2:
        y = tl.load(prev_ptr + at, mask=ok, other=0.0).to(tl.float32)
        z = y
        if PREV_NORM:
            params = prev_params_ptr + group * 3 * FEATURES + feature
            scale = tl.load(params, mask=col_ok[None, :], other=0.0)
            shift = tl.load(params + FEATURES, mask=col_ok[None, :], other=0.0)
            z = scale * y + shift
        if SLOPE != 1.0:
            acc = tl.where(z <= 0.0, acc * SLOPE, acc)
    stored = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, stored, mask=ok)
    if STATISTICS:
        v = tl.where(ok, stored.to(tl.float32), 0.0)
        if EPILOGUE == 2:
            first = tl.sum(v, axis=0)
            if PREV_NORM:
                mean = tl.load(params + 2 * FEATURES, mask=col_ok[None, :], other=0.0)
                second = tl.sum(v * (y - mean), axis=0)
            else:
                second = first
        else:
            count = tl.sum(row_ok.to(tl.float32), axis=0)
            first = tl.sum(v, axis=0) / tl.maximum(count, 1.0)
            centred = tl.where(ok, v - first[None, :], 0.0)
            second = tl.sum(centred * centred, axis=0)
        to = tiles_ptr + (group * TILES + tile) * 2 * COUT + col
        tl.store(to, first, mask=col_ok)
        tl.store(to + COUT, second, mask=col_ok)


@triton.jit
def implicit_gemm_kernel(
    x_ptr,  # (N, H, W, CIN)
    y_ptr,  # (N, H, W, CIN), PROLOGUE gradient only
    params_ptr,  # fp32 (groups, 3, FEATURES_IN): scale, shift, - or A, B, C
    w_ptr,  # by its strides
    bias_ptr,  # (COUT)
    out_ptr,  # (N, HO, WO, COUT)
    tiles_ptr,  # fp32 (groups, TILES, 2, COUT)
    prev_ptr,  # (N, HO, WO, COUT)
    prev_params_ptr,  # fp32 (groups, 3, FEATURES_OUT)
    partial_ptr,  # fp32 (splits, N, COUT), scratch, or None without splits
    counters_ptr,  # int32 (column tiles + tiles)
    gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr, new_params_ptr, rstd_ptr,  # forward's
    prev_gamma_ptr, prev_rstd_ptr, coefficients_ptr, dgamma_ptr, dbeta_ptr,  # backward's
    IMAGES, SIZE, H, W, CIN, HO, WO, COUT, P, Q, TILES, PAD, FEATURES_IN, FEATURES_OUT, CHUNK,
    W_IN, W_OUT, W_ROW, W_COL,
    TRANSPOSED: tl.constexpr, STRIDE: tl.constexpr, KERNEL: tl.constexpr, TAPS: tl.constexpr,
    PROLOGUE: tl.constexpr, IN_NORM: tl.constexpr, IN_SLOPE: tl.constexpr, IN_PIXEL: tl.constexpr,
    EPILOGUE: tl.constexpr, HAS_BIAS: tl.constexpr, STATISTICS: tl.constexpr,
    ACTIVATION: tl.constexpr, OUT_SLOPE: tl.constexpr, PREV_NORM: tl.constexpr,
    MERGE: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute a product; see the module. Grid: (groups * row tiles * column tiles, phases, splits).

    IMAGES: images in a group. SIZE: values of the whole result. P, Q: positions of a phase. CHUNK:
    channels of a split, a multiple of BLOCK_K.
    IN_PIXEL: the prologue's parameters are per feature (pixel and channel), not per channel.
    """
    phase, split = tl.program_id(1), tl.program_id(2)
    rows = IMAGES * P * Q
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK_M), tl.cdiv(COUT, BLOCK_N)
    pid = tl.program_id(0)
    pid_n, pid_m = pid % column_tiles, pid // column_tiles
    group, tile = pid_m // row_tiles, pid_m % row_tiles

    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    col = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    image, p, q = group * IMAGES + m // (P * Q), (m // Q) % P, m % Q
    row_ok, col_ok = m < rows, col < COUT
    if TRANSPOSED:
        phase_p, phase_q = phase // STRIDE, phase % STRIDE
        out_p, out_q = p * STRIDE + phase_p, q * STRIDE + phase_q
        row_ok = row_ok & (out_p < HO) & (out_q < WO)
        first_r, first_s = (phase_p + PAD) % STRIDE, (phase_q + PAD) % STRIDE
        base_p, base_q = p + (phase_p + PAD) // STRIDE, q + (phase_q + PAD) // STRIDE
    else:
        out_p, out_q = p, q
        first_r, first_s = 0, 0
        base_p, base_q = p * STRIDE - PAD, q * STRIDE - PAD

    k0 = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # Nested loops: a flattened one was miscompiled at 8 warps.
    for tap_r in range(TAPS):
        for tap_s in range(TAPS):
            if TRANSPOSED:
                r, s = first_r + STRIDE * tap_r, first_s + STRIDE * tap_s
                in_p, in_q = base_p - tap_r, base_q - tap_s
            else:
                r, s = tap_r, tap_s
                in_p, in_q = base_p + tap_r, base_q + tap_s
            inside = row_ok & (in_p >= 0) & (in_p < H) & (in_q >= 0) & (in_q < W)
            if TRANSPOSED and KERNEL % STRIDE != 0:
                inside = inside & (r < KERNEL) & (s < KERNEL)
            pixel = in_p * W + in_q
            x_row = (image * (H * W) + pixel).to(tl.int64) * CIN
            w_tap = w_ptr + r * W_ROW + s * W_COL
            for c in range(split * CHUNK, min((split + 1) * CHUNK, CIN), BLOCK_K):
                k = c + k0
                k_ok = k < CIN
                ok = inside[:, None] & k_ok[None, :]
                x = tl.load(x_ptr + x_row[:, None] + k[None, :], mask=ok, other=0.0)
                if PROLOGUE != 0:
                    if IN_PIXEL:
                        feature = pixel[:, None] * CIN + k[None, :]
                        params_ok = ok
                    else:
                        feature = (k % FEATURES_IN)[None, :]
                        params_ok = k_ok[None, :]
                    v = x.to(tl.float32)
                    if PROLOGUE == 1:
                        if IN_NORM:
                            params = params_ptr + group * 3 * FEATURES_IN + feature
                            scale = tl.load(params, mask=params_ok, other=0.0)
                            shift = tl.load(params + FEATURES_IN, mask=params_ok, other=0.0)
                            v = scale * v + shift
                        v = leaky_relu(v, IN_SLOPE)
                    else:
                        y = tl.load(y_ptr + x_row[:, None] + k[None, :], mask=ok, other=0.0)
                        params = params_ptr + group * 3 * FEATURES_IN + feature
                        a = tl.load(params, mask=params_ok, other=0.0)
                        b = tl.load(params + FEATURES_IN, mask=params_ok, other=0.0)
                        d = tl.load(params + 2 * FEATURES_IN, mask=params_ok, other=0.0)
                        v = a * v + b * y.to(tl.float32) + d
                    # Padding and masked values are 0 after the prologue, not before it.
                    x = tl.where(ok, v, 0.0).to(x_ptr.dtype.element_ty)
                w = tl.load(
                    w_tap + k[:, None] * W_IN + col[None, :] * W_OUT,
                    mask=k_ok[:, None] & col_ok[None, :] & (r < KERNEL) & (s < KERNEL),
                    other=0.0,
                )
                acc = tl.dot(x, w.to(x.dtype), acc, input_precision=PRECISION)

    row = (image * HO + out_p) * WO + out_q
    last = True
    if partial_ptr is not None:
        at = row[:, None].to(tl.int64) * COUT + col[None, :]
        ok = row_ok[:, None] & col_ok[None, :]
        tl.store(partial_ptr + split.to(tl.int64) * SIZE + at, acc, mask=ok)
        last = is_last(counters_ptr + column_tiles + pid, tl.num_programs(2))
    if last:
        if partial_ptr is not None:
            product = sum_splits(partial_ptr, at, ok, tl.num_programs(2), SIZE, 1)
        else:
            product = acc
        finish_tile(
            product, row, row_ok, col, col_ok, (col % FEATURES_OUT)[None, :], group,
            phase * row_tiles + tile, COUT, TILES, FEATURES_OUT, bias_ptr, out_ptr, tiles_ptr,
            prev_ptr, prev_params_ptr,
            EPILOGUE, HAS_BIAS, STATISTICS, ACTIVATION, OUT_SLOPE, PREV_NORM,
        )  # fmt: skip
        if MERGE:
            # Columns are the features, or the features for each pixel; see `mergeable`.
            block = pid_n % tl.cdiv(FEATURES_OUT, BLOCK_N)
            groups = tl.num_programs(0) // (row_tiles * column_tiles)
            repeats = COUT // FEATURES_OUT
            count = IMAGES * HO * WO * repeats
            c = block * BLOCK_N + tl.arange(0, BLOCK_N)
            if is_last(counters_ptr + block, groups * TILES * repeats):
                if EPILOGUE == 2:
                    finalize_grads(
                        c, c < FEATURES_OUT, tiles_ptr, prev_gamma_ptr, prev_params_ptr,
                        prev_rstd_ptr, coefficients_ptr, dgamma_ptr, dbeta_ptr, groups, TILES,
                        repeats, count, FEATURES_OUT, PREV_NORM, 32, 4,
                    )  # fmt: skip
                else:
                    finalize_stats(
                        c, c < FEATURES_OUT, tiles_ptr, gamma_ptr, beta_ptr, running_mean_ptr,
                        running_var_ptr, new_params_ptr, rstd_ptr, groups, TILES, row_tiles, rows,
                        count, FEATURES_OUT, BLOCK_M, EPS, MOMENTUM, 32,
                    )  # fmt: skip


class Epilogue(NamedTuple):
    """What is done to a product's tiles in registers.

    Attributes:
        bias: (Cout,) or None.
        activation: of a forward product, from `ACTIVATIONS`.
        slope: of "leaky_relu".
        previous: for a data gradient, the previous block, whose act' and sums are formed.
        statistics: whether tile statistics are written; they are, if `stats_out` is given.
        stats_out: where the finalized statistics are written: batch norm's of this block, or in a
            data gradient of the previous one.
    """

    bias: Tensor | None = None
    activation: str = "none"
    slope: float = 1.0
    previous: Deferred | None = None
    statistics: bool = False
    stats_out: BatchNormForward | BatchNormBackward | None = None


NO_EPILOGUE = Epilogue()


def launch_implicit_gemm(
    operand: Deferred,
    weight: Tensor,
    geometry: ConvGeometry,
    groups: int,
    epilogue: Epilogue = NO_EPILOGUE,
    *,
    backward: bool = False,
    tile: GemmTile | None = None,
) -> tuple[Tensor, TileStatistics | None]:
    """Compute a layer's forward pass or data gradient.

    Args:
        operand: the input, or the gradient of the result.
        weight: in torch's layout, any strides.
        geometry: the layer's.
        groups: statistics groups.
        epilogue: what is done to the product before it is written.
        backward: whether this is the layer's data gradient.
        tile: how the product is tiled; None for the rule's tile.

    Returns:
        The feature map, in the operand's dtype, and its tile statistics if asked for.
    """
    bias, activation, slope, previous, statistics, stats_out = epilogue
    x = operand.x
    images, height, width, channels = x.shape
    strides = weight_strides(weight, transposed=geometry.transposed, data_gradient=backward)
    columns = weight.shape[0 if geometry.transposed == backward else 1]
    geometry = geometry.data_gradient if backward else geometry
    p, q = geometry.grid
    rows, phases = images // groups * p * q, geometry.phases**2
    flat = p * q * phases == 1 and geometry.taps == 1
    tile = tile or gemm_tile(
        x, weight, rows * groups, columns, phases, operand.bytes_per_value, flat=flat
    )
    splits = tile.splits if flat else 1
    chunk = triton.cdiv(triton.cdiv(channels, splits), tile.k) * tile.k
    splits = triton.cdiv(channels, chunk)
    row_tiles, column_tiles = triton.cdiv(rows, tile.m), triton.cdiv(columns, tile.n)
    tile_count = row_tiles * phases
    features_out = columns if previous is None else previous.features
    merge = False
    if stats_out is not None:
        statistics, features_out = True, stats_out.features
        merge = mergeable(groups * tile_count, columns, features_out, tile.n)
    forward = stats_out if merge and isinstance(stats_out, BatchNormForward) else None
    gradient = stats_out if merge and isinstance(stats_out, BatchNormBackward) else None

    def scratch(*shape: int) -> Tensor:
        return empty(shape, torch.float32, x.device)

    out = empty((images, *geometry.output_size, columns), x.dtype, x.device)
    sums = scratch(groups, tile_count, 2, columns) if statistics else None
    partial = scratch(splits, images, columns) if splits > 1 else None
    of_previous = (previous.x, previous.params) if previous else (None, None)
    read: tuple[Tensor | None, ...] = (*operand.tensors, weight, bias, *of_previous, partial)
    written: tuple[Tensor | None, ...] = (out, sums, partial)
    if stats_out is not None and merge:
        read, written = (*read, sums, *stats_out.read), (*written, *stats_out.written)
    counters = column_tiles * (1 + groups * row_tiles) if merge or splits > 1 else 0
    launch(
        implicit_gemm_kernel,
        (groups * row_tiles * column_tiles, phases, splits),
        x, operand.y, operand.params, weight, bias, out, sums, *of_previous, partial,
        arrival_counters(counters, x) if counters else None,
        *(forward.pointers if forward else (None,) * 6),
        *(gradient.pointers if gradient else (None,) * 5),
        images // groups, out.numel(), height, width, channels, *geometry.output_size, columns,
        p, q, tile_count, geometry.window.pad_before, operand.features, features_out, chunk,
        *strides,
        TRANSPOSED=geometry.transposed, STRIDE=geometry.window.stride,
        KERNEL=geometry.window.kernel, TAPS=geometry.taps,
        PROLOGUE=operand.prologue, IN_NORM=operand.params is not None,
        IN_SLOPE=float(operand.slope), IN_PIXEL=operand.per_pixel,
        EPILOGUE=_GRADIENT if previous else _FORWARD if activation == "none" else _ACTIVATED,
        HAS_BIAS=bias is not None, STATISTICS=statistics,
        ACTIVATION=ACTIVATIONS.index(activation),
        OUT_SLOPE=float(previous.slope if previous else slope),
        PREV_NORM=previous is not None and previous.params is not None,
        MERGE=merge, **(forward.constants if forward else {"EPS": 0.0, "MOMENTUM": 0.0}),
        PRECISION=precision(x.dtype),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
        num_warps=tile.warps, num_stages=tile.stages, **tile.limits,
        read=read, written=written,
    )  # fmt: skip
    if sums is None:
        return out, None
    tiles = TileStatistics(sums, tile.m, row_tiles, rows)
    if stats_out is not None and not merge:
        count = out.numel() // stats_out.features // groups
        if isinstance(stats_out, BatchNormForward):
            stats_out.finalize(tiles, count)
        else:
            stats_out.finalize(sums, count)
    return out, tiles
