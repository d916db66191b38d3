"""The first convolution, from images as they lie in memory: uint8 and gathered by index.

    y[n, p, q, o] = bias[o] + sum over k of  W[k, o] * (scale * x[index[n], at(p, q, k)] + shift)

With so few channels the window is flattened, k = (r, s, c): one step of depth 16 to 64. Padding is
0 after the scaling, as in an image that is scaled and then padded. Floating-point images are read
by the same kernels.
"""

from typing import Any

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.bn_stats import BatchNormForward, finalize_stats, mergeable
from fastinfogan_kernels.conv_block.deferred import ACTIVATIONS, TileStatistics
from fastinfogan_kernels.conv_block.implicit_gemm import finish_tile
from fastinfogan_kernels.conv_block.launch_table import GemmTile
from fastinfogan_kernels.conv_block.layers import Images, Window, weight_strides
from fastinfogan_kernels.conv_block.weight_grad import cut_steps
from fastinfogan_kernels.runtime.arrival_counters import arrival_counters, is_last, sum_splits
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.machine import machine_of, power_of_two, precision
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty

MAX_DEPTH = 64
"""Taps times channels that one step of the flattened window holds."""


@triton.jit
def load_window(
    images_ptr, index_ptr, m, k, m_ok, k_ok, P, Q, H, W, PAD, C: tl.constexpr,
    STRIDE: tl.constexpr, KERNEL: tl.constexpr, INDEXED: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Load the scaled pixels under positions m at depths k, fp32; 0 in the padding."""
    image, p, q = m // (P * Q), (m // Q) % P, m % Q
    if INDEXED:
        image = tl.load(index_ptr + image, mask=m_ok, other=0)
    tap, c = k // C, k % C
    in_p = (p * STRIDE - PAD)[:, None] + (tap // KERNEL)[None, :]
    in_q = (q * STRIDE - PAD)[:, None] + (tap % KERNEL)[None, :]
    ok = m_ok[:, None] & k_ok[None, :] & (in_p >= 0) & (in_p < H) & (in_q >= 0) & (in_q < W)
    at = ((image.to(tl.int64) * H)[:, None] + in_p) * W + in_q
    x = tl.load(images_ptr + at * C + c[None, :], mask=ok, other=0).to(tl.float32)
    return tl.where(ok, x * SCALE + SHIFT, 0.0)


@triton.jit
def image_block_kernel(
    images_ptr,  # (M, H, W, C)
    index_ptr,  # int64 (N)
    w_ptr,  # by its strides
    bias_ptr,  # (COUT)
    out_ptr,  # (N, P, Q, COUT)
    tiles_ptr,  # fp32 (groups, TILES, 2, COUT)
    counters_ptr,  # int32 (column tiles)
    gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr, params_ptr, rstd_ptr,  # batch norm's
    ROWS, H, W, P, Q, COUT, PAD, TILES, W_IN, W_OUT, W_ROW, W_COL,
    C: tl.constexpr, STRIDE: tl.constexpr, KERNEL: tl.constexpr, INDEXED: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, HAS_BIAS: tl.constexpr, STATISTICS: tl.constexpr,
    EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    MERGE: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute a block of images; see the module.

    ROWS: positions of a group. Grid: (groups * row tiles * column tiles,).
    """
    column_tiles = tl.cdiv(COUT, BLOCK_N)
    pid = tl.program_id(0)
    pid_n, pid_m = pid % column_tiles, pid // column_tiles
    group, tile = pid_m // TILES, pid_m % TILES
    local = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok, m = local < ROWS, group * ROWS + local
    col = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    col_ok = col < COUT
    k = tl.arange(0, DEPTH)
    k_ok = k < KERNEL * KERNEL * C
    x = load_window(
        images_ptr, index_ptr, m, k, row_ok, k_ok, P, Q, H, W, PAD, C, STRIDE, KERNEL, INDEXED,
        SCALE, SHIFT,
    ).to(out_ptr.dtype.element_ty)  # fmt: skip
    tap = k // C
    at = (k % C) * W_IN + (tap // KERNEL) * W_ROW + (tap % KERNEL) * W_COL
    w = tl.load(
        w_ptr + at[:, None] + col[None, :] * W_OUT, mask=k_ok[:, None] & col_ok[None, :], other=0.0
    )
    acc = tl.dot(x, w.to(x.dtype), input_precision=PRECISION)
    finish_tile(
        acc, m, row_ok, col, col_ok, col[None, :], group, tile, COUT, TILES, COUT,
        bias_ptr, out_ptr, tiles_ptr, None, None,
        EPILOGUE, HAS_BIAS, STATISTICS, ACTIVATION, SLOPE, False,
    )  # fmt: skip
    if MERGE:
        groups = tl.num_programs(0) // (TILES * column_tiles)
        if is_last(counters_ptr + pid_n, groups * TILES):
            finalize_stats(
                col, col_ok, tiles_ptr, gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr,
                params_ptr, rstd_ptr, groups, TILES, TILES, ROWS, ROWS, COUT, BLOCK_M, EPS,
                MOMENTUM, 32,
            )  # fmt: skip


@triton.jit
def image_weight_gradient_kernel(
    images_ptr,  # (M, H, W, C)
    index_ptr,  # int64 (N)
    g_ptr,  # (N, P, Q, COUT)
    y_ptr,  # (N, P, Q, COUT), with batch norm
    coefficients_ptr,  # fp32 (groups, 3, COUT)
    out_ptr,  # (COUT, KERNEL * KERNEL * C)
    partial_ptr,  # fp32 (splits, COUT, KERNEL * KERNEL * C), scratch
    counters_ptr,  # int32 (channel tiles)
    ROWS, H, W, P, Q, COUT, PAD, GROUP_STEPS, STEPS, CHUNK,
    C: tl.constexpr, STRIDE: tl.constexpr, KERNEL: tl.constexpr, INDEXED: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sum dW[o, k] over positions m of dy[m, o] * image[m, k]. Grid: (channel tiles, 1, splits).

    Steps and splits as in `weight_gradient`.
    """
    split = tl.program_id(2)
    col = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col_ok = col < COUT
    k = tl.arange(0, DEPTH)
    k_ok = k < KERNEL * KERNEL * C
    acc = tl.zeros((BLOCK_M, DEPTH), tl.float32)
    for step in range(split * CHUNK, min((split + 1) * CHUNK, STEPS)):
        group = step // GROUP_STEPS
        local = (step % GROUP_STEPS) * BLOCK_K + tl.arange(0, BLOCK_K)
        row_ok, m = local < ROWS, group * ROWS + local
        at = m.to(tl.int64)[:, None] * COUT + col[None, :]
        ok = row_ok[:, None] & col_ok[None, :]
        g = tl.load(g_ptr + at, mask=ok, other=0.0)
        if NORM:
            y = tl.load(y_ptr + at, mask=ok, other=0.0).to(tl.float32)
            params = coefficients_ptr + group * 3 * COUT + col
            a = tl.load(params, mask=col_ok, other=0.0)[None, :]
            b = tl.load(params + COUT, mask=col_ok, other=0.0)[None, :]
            d = tl.load(params + 2 * COUT, mask=col_ok, other=0.0)[None, :]
            g = tl.where(ok, a * g.to(tl.float32) + b * y + d, 0.0).to(g.dtype)
        x = load_window(
            images_ptr, index_ptr, m, k, row_ok, k_ok, P, Q, H, W, PAD, C, STRIDE, KERNEL, INDEXED,
            SCALE, SHIFT,
        ).to(g.dtype)  # fmt: skip
        acc = tl.dot(tl.trans(g), x, acc, input_precision=PRECISION)
    size = KERNEL * KERNEL * C
    at = col[:, None] * size + k[None, :]
    ok = col_ok[:, None] & k_ok[None, :]
    tl.store(partial_ptr + split * COUT * size + at, acc, mask=ok)
    splits = tl.num_programs(2)
    if is_last(counters_ptr + tl.program_id(0), splits):
        # As many splits as there are processors: their loads must overlap.
        total = sum_splits(partial_ptr, at, ok, splits, COUT * size, 256 // DEPTH)
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=ok)


def supports_images(channels: int, window: Window) -> bool:
    """Return whether these kernels compute a convolution: few channels under a small window."""
    return window.kernel > 1 and channels * window.kernel**2 <= MAX_DEPTH


def launch_image_block(
    images: Images,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    *,
    activation: str = "none",
    slope: float = 1.0,
    stats_out: BatchNormForward | None = None,
) -> Tensor:
    """Compute the first convolution; arguments and result as of `launch_implicit_gemm`."""
    data, count = images.data, images.count
    _, height, width, channels = data.shape
    p, q, columns = window.rows, window.columns, weight.shape[0]
    rows = count // groups * p * q
    # fp32 products take many registers per value.
    wide = images.dtype.itemsize > 2
    block_m = power_of_two(rows, 16, 32 if wide else 128)
    block_n = power_of_two(columns, 16, 64)
    row_tiles, column_tiles = triton.cdiv(rows, block_m), triton.cdiv(columns, block_n)
    out = empty((count, p, q, columns), images.dtype, data.device)
    sums = None
    if stats_out is not None:
        sums = empty((groups, row_tiles, 2, columns), torch.float32, data.device)
    merge = mergeable(groups * row_tiles, columns, columns, block_n)
    merged = stats_out if merge else None
    launch(
        image_block_kernel,
        (groups * row_tiles * column_tiles,),
        data, images.index, weight, bias, out, sums,
        arrival_counters(column_tiles, data) if merged else None,
        *(merged.pointers if merged else (None,) * 6),
        rows, height, width, p, q, columns, window.pad_before, row_tiles,
        *weight_strides(weight, transposed=False, data_gradient=False),
        **_loading(images, window),
        HAS_BIAS=bias is not None, STATISTICS=stats_out is not None,
        EPILOGUE=0 if activation == "none" else 1, ACTIVATION=ACTIVATIONS.index(activation),
        SLOPE=float(slope),
        MERGE=merged is not None, **(merged.constants if merged else {"EPS": 0.0, "MOMENTUM": 0.0}),
        PRECISION=precision(images.dtype), BLOCK_M=block_m, BLOCK_N=block_n,
        DEPTH=power_of_two(channels * window.kernel**2, 16, MAX_DEPTH), num_warps=4,
        read=(_loaded(images), weight, bias, *((sums, *merged.read) if merged else ())),
        written=(out, sums, *(merged.written if merged else ())),
    )  # fmt: skip
    if sums is not None and stats_out is not None and merged is None:
        stats_out.finalize(TileStatistics(sums, block_m, row_tiles, rows), rows)
    return out


def launch_image_weight_gradient(
    images: Images,
    g: Tensor,
    y: Tensor | None,
    coefficients: Tensor | None,
    weight: Tensor,
    window: Window,
    groups: int,
) -> Tensor:
    """Compute its weight's gradient; arguments and result as of `launch_weight_gradient`."""
    data, count = images.data, images.count
    _, height, width, channels = data.shape
    p, q, columns = window.rows, window.columns, weight.shape[0]
    rows = count // groups * p * q
    size = channels * window.kernel**2
    wide = g.element_size() > 2
    block_m = 32 if wide else 64
    block_k = power_of_two(rows, 16, 16 if wide else 64)
    splits = max(1, min(machine_of(data.device).processors, rows * groups // (4 * block_k)))
    tile = GemmTile(block_m, size, block_k, splits=splits)
    group_steps, steps, chunk, splits = cut_steps(rows, groups, tile)
    partial = empty((splits, columns, size), torch.float32, data.device)
    shape = (columns, window.kernel, window.kernel, channels)
    out = empty(shape, weight.dtype, data.device)
    column_tiles = triton.cdiv(columns, block_m)
    launch(
        image_weight_gradient_kernel,
        (column_tiles, 1, splits),
        data, images.index, g, y, coefficients, out, partial, arrival_counters(column_tiles, data),
        rows, height, width, p, q, columns, window.pad_before, group_steps, steps, chunk,
        **_loading(images, window),
        NORM=y is not None, PRECISION=precision(g.dtype),
        BLOCK_M=block_m, BLOCK_K=block_k, DEPTH=power_of_two(size, 16, MAX_DEPTH), num_warps=4,
        read=(_loaded(images), g, y, coefficients, partial), written=(partial, out),
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def _loading(images: Images, window: Window) -> dict[str, Any]:
    """Return the constexpr arguments of `load_window`."""
    return {
        "C": images.data.shape[3],
        "STRIDE": window.stride,
        "KERNEL": window.kernel,
        "INDEXED": images.index is not None,
        "SCALE": float(images.scale),
        "SHIFT": float(images.shift),
    }


def _loaded(images: Images) -> Tensor:
    """Return as many images as are read, to count their bytes."""
    return images.data[:1].expand(images.count, -1, -1, -1)


@register("image_norm_block", mutates_args=("running_mean", "running_var"))
def image_norm_block(
    images: Tensor, index: Tensor | None, scale: float, shift: float, dtype: torch.dtype,
    weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor,
    running_mean: Tensor | None, running_var: Tensor | None,
    window: list[int], groups: int, eps: float, momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute `ops.norm_block` of images."""
    norm = BatchNormForward.allocate(gamma, beta, running_mean, running_var, groups, eps, momentum)
    source = Images(images, index, scale, shift, dtype)
    y = launch_image_block(source, weight, bias, Window(*window), groups, stats_out=norm)
    return y, norm.params, norm.rstd


@register("image_plain_block")
def image_plain_block(
    images: Tensor, index: Tensor | None, scale: float, shift: float, dtype: torch.dtype,
    weight: Tensor, bias: Tensor | None, window: list[int], groups: int, activation: str,
    slope: float,
) -> Tensor:  # fmt: skip
    """Compute `ops.plain_block` of images."""
    return launch_image_block(
        Images(images, index, scale, shift, dtype), weight, bias, Window(*window), groups,
        activation=activation, slope=slope,
    )  # fmt: skip


@register("image_weight_gradient")
def image_weight_gradient(
    images: Tensor, index: Tensor | None, scale: float, shift: float, g: Tensor, y: Tensor | None,
    coefficients: Tensor | None, weight: Tensor, window: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Compute `ops.weight_gradient` of images."""
    source = Images(images, index, scale, shift, g.dtype)
    return launch_image_weight_gradient(source, g, y, coefficients, weight, Window(*window), groups)
