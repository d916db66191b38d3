"""The weight gradient of every layer: a product over all positions, split and summed in order.

    dW[d, t, g] = sum over positions m of  pro(D[m, d]) * pro(G[at(m, t), g])

One operand, D, is read at the positions themselves and the other, G, is gathered. A convolution
reads dy (formed as A * g + B * y + C) directly and gathers its input (formed as
lrelu(scale * y + shift)); a transposed one reads its input and gathers dy. Either way the result,
(direct channels, tap rows, tap columns, gathered channels), is torch's weight in channels_last
memory.

Positions are processed in steps of BLOCK_K, none of which straddles two statistics groups; the
steps are cut into splits, whose partial sums in fp32 the last program of a tile adds in order, so
the result is the same at every run.
"""

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.deferred import Deferred, leaky_relu
from fastinfogan_kernels.conv_block.launch_table import GemmTile, weight_gradient_tile
from fastinfogan_kernels.conv_block.layers import ConvGeometry
from fastinfogan_kernels.runtime.arrival_counters import arrival_counters, is_last, sum_splits
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.machine import precision
from fastinfogan_kernels.runtime.workspace import empty


@triton.jit
def form_operand(
    x, y_ptr, at, ok, params_ptr, feature, params_ok, FEATURES,
    PROLOGUE: tl.constexpr, NORM: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Form an operand while loading, as in `implicit_gemm`; x is loaded, in its storage type."""
    v = x.to(tl.float32)
    if PROLOGUE == 1:
        if NORM:
            params = params_ptr + feature
            scale = tl.load(params, mask=params_ok, other=0.0)
            shift = tl.load(params + FEATURES, mask=params_ok, other=0.0)
            v = scale * v + shift
        v = leaky_relu(v, SLOPE)
    if PROLOGUE == 2:
        y = tl.load(y_ptr + at, mask=ok, other=0.0).to(tl.float32)
        params = params_ptr + feature
        a = tl.load(params, mask=params_ok, other=0.0)
        b = tl.load(params + FEATURES, mask=params_ok, other=0.0)
        d = tl.load(params + 2 * FEATURES, mask=params_ok, other=0.0)
        v = a * v + b * y + d
    return tl.where(ok, v, 0.0).to(x.dtype)


@triton.jit
def weight_gradient_kernel(
    d_ptr,  # (N, P, Q, CD): the direct operand
    d_y_ptr,  # (N, P, Q, CD): y beside it, if it is a gradient
    d_params_ptr,  # fp32 (groups, 3, D_FEATURES)
    g_ptr,  # (N, H, W, CG): the gathered operand
    g_y_ptr,  # (N, H, W, CG)
    g_params_ptr,  # fp32 (groups, 3, G_FEATURES)
    out_ptr,  # (CD, KERNEL, KERNEL, CG)
    partial_ptr,  # fp32 (splits, CD, KERNEL, KERNEL, CG), scratch, or None without splits
    counters_ptr,  # int32 (taps, tiles)
    IMAGES, P, Q, CD, H, W, CG, PAD, SIZE, GROUP_STEPS, STEPS, CHUNK, D_FEATURES, G_FEATURES,
    STRIDE: tl.constexpr, KERNEL: tl.constexpr,
    D_PROLOGUE: tl.constexpr, D_NORM: tl.constexpr, D_SLOPE: tl.constexpr, D_PIXEL: tl.constexpr,
    G_PROLOGUE: tl.constexpr, G_NORM: tl.constexpr, G_SLOPE: tl.constexpr, G_PIXEL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum products over positions; see the module.

    Grid: (direct tiles * gathered tiles, taps, splits).
    SIZE: values of the result. GROUP_STEPS, STEPS, CHUNK: steps in a statistics group, in all, and
    in a split.
    """
    gathered_tiles = tl.cdiv(CG, BLOCK_N)
    pid_n, pid_m = tl.program_id(0) % gathered_tiles, tl.program_id(0) // gathered_tiles
    tap, split = tl.program_id(1), tl.program_id(2)
    r, s = tap // KERNEL, tap % KERNEL
    positions = IMAGES * P * Q

    d = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    g = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    d_ok, g_ok = d < CD, g < CG
    k0 = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(split * CHUNK, min((split + 1) * CHUNK, STEPS)):
        group = step // GROUP_STEPS
        m = (step % GROUP_STEPS) * BLOCK_K + k0
        m_ok = m < positions
        image, p, q = group * IMAGES + m // (P * Q), (m // Q) % P, m % Q
        in_p, in_q = p * STRIDE - PAD + r, q * STRIDE - PAD + s
        inside = m_ok & (in_p >= 0) & (in_p < H) & (in_q >= 0) & (in_q < W)

        ok = m_ok[:, None] & d_ok[None, :]
        at = (group * positions + m).to(tl.int64)[:, None] * CD + d[None, :]
        left = tl.load(d_ptr + at, mask=ok, other=0.0)
        if D_PROLOGUE != 0:
            if D_PIXEL:
                feature, params_ok = (m % (P * Q))[:, None] * CD + d[None, :], ok
            else:
                feature, params_ok = (d % D_FEATURES)[None, :], d_ok[None, :]
            left = form_operand(
                left, d_y_ptr, at, ok, d_params_ptr, group * 3 * D_FEATURES + feature, params_ok,
                D_FEATURES, D_PROLOGUE, D_NORM, D_SLOPE,
            )  # fmt: skip
        ok = inside[:, None] & g_ok[None, :]
        pixel = in_p * W + in_q
        at = (image * (H * W) + pixel).to(tl.int64)[:, None] * CG + g[None, :]
        right = tl.load(g_ptr + at, mask=ok, other=0.0)
        if G_PROLOGUE != 0:
            if G_PIXEL:
                feature, params_ok = pixel[:, None] * CG + g[None, :], ok
            else:
                feature, params_ok = (g % G_FEATURES)[None, :], g_ok[None, :]
            right = form_operand(
                right, g_y_ptr, at, ok, g_params_ptr, group * 3 * G_FEATURES + feature, params_ok,
                G_FEATURES, G_PROLOGUE, G_NORM, G_SLOPE,
            )  # fmt: skip
        acc = tl.dot(tl.trans(left), right, acc, input_precision=PRECISION)

    row = (d * KERNEL + r) * KERNEL + s
    at = row.to(tl.int64)[:, None] * CG + g[None, :]
    ok = d_ok[:, None] & g_ok[None, :]
    last = True
    if partial_ptr is not None:
        tl.store(partial_ptr + split.to(tl.int64) * SIZE + at, acc, mask=ok)
        counter = tap * tl.num_programs(0) + tl.program_id(0)
        last = is_last(counters_ptr + counter, tl.num_programs(2))
    if last:
        if partial_ptr is not None:
            total = sum_splits(partial_ptr, at, ok, tl.num_programs(2), SIZE, 1)
        else:
            total = acc
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=ok)


def launch_weight_gradient(
    operand: Deferred,
    gradient: Deferred,
    weight: Tensor,
    geometry: ConvGeometry,
    groups: int,
    *,
    tile: GemmTile | None = None,
) -> Tensor:
    """Return the gradient of a layer's weight: its shape and dtype, in channels_last memory.

    Args:
        operand: the layer's input, as it was loaded.
        gradient: dy, as it is formed.
        weight: the layer's, for shape and dtype.
        geometry: the layer's.
        groups: statistics groups.
        tile: how the product is tiled; None for the rule's tile.
    """
    direct, gathered = (operand, gradient) if geometry.transposed else (gradient, operand)
    images, p, q, rows = direct.x.shape
    _, height, width, columns = gathered.x.shape
    kernel = geometry.window.kernel
    positions = images // groups * p * q
    value_bytes = direct.bytes_per_value + gathered.bytes_per_value
    tile = tile or weight_gradient_tile(
        direct.x, positions * groups, rows, columns, kernel**2, value_bytes
    )
    group_steps, steps, chunk, splits = cut_steps(positions, groups, tile)
    out = empty((rows, kernel, kernel, columns), weight.dtype, weight.device)
    partial = empty((splits, *out.shape), torch.float32, out.device) if splits > 1 else None
    tiles = triton.cdiv(rows, tile.m) * triton.cdiv(columns, tile.n)
    launch(
        weight_gradient_kernel,
        (tiles, kernel**2, splits),
        *direct.tensors, *gathered.tensors, out, partial,
        arrival_counters(tiles * kernel**2, out) if splits > 1 else None,
        images // groups, p, q, rows, height, width, columns, geometry.window.pad_before,
        out.numel(), group_steps, steps, chunk, direct.features, gathered.features,
        STRIDE=geometry.window.stride, KERNEL=kernel,
        D_PROLOGUE=direct.prologue, D_NORM=direct.params is not None,
        D_SLOPE=float(direct.slope), D_PIXEL=direct.per_pixel,
        G_PROLOGUE=gathered.prologue, G_NORM=gathered.params is not None,
        G_SLOPE=float(gathered.slope), G_PIXEL=gathered.per_pixel,
        PRECISION=precision(direct.x.dtype),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
        num_warps=tile.warps, num_stages=tile.stages, **tile.limits,
        read=(*direct.tensors, *gathered.tensors, partial), written=(partial, out),
    )  # fmt: skip
    return out.view(weight.shape) if weight.dim() == 2 else out.permute(0, 3, 1, 2)


def cut_steps(positions: int, groups: int, tile: GemmTile) -> tuple[int, int, int, int]:
    """Return the steps in a statistics group, in all, and in a split; and the number of splits."""
    group_steps = triton.cdiv(positions, tile.k)
    steps = group_steps * groups
    chunk = triton.cdiv(steps, tile.splits)
    return group_steps, steps, chunk, triton.cdiv(steps, chunk)
