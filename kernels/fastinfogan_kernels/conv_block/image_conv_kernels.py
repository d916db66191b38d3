"""The first convolution, from images as they lie in memory: uint8 and gathered by index.

    y[n, p, q, o] = bias[o] + sum over k of  W[k, o] * (scale * x[index[n], at(p, q, k)] + shift)

With so few channels the window is flattened, k = (r, s, c): one step of depth 16 to 64. Pixels in
the padding are 0 behind the scaling, as a scaled and padded image has them. Floating-point images
are read by the same kernels.
"""

from fastinfogan_kernels.conv_block.bn_stats_kernels import merge_statistics
from fastinfogan_kernels.conv_block.implicit_gemm_kernel import finish
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.reduce import add_splits, is_last


@triton.jit
def load_window(
    images_ptr, index_ptr, m, k, m_ok, k_ok, P, Q, H, W, PAD, C: tl.constexpr,
    STRIDE: tl.constexpr, KERNEL: tl.constexpr, INDEXED: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """The scaled pixels under positions m at depths k, fp32; 0 in the padding."""
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
    tickets_ptr,  # int32 (column tiles)
    gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr, params_ptr, rstd_ptr,  # batch norm's
    ROWS, H, W, P, Q, COUT, PAD, TILES, W_IN, W_OUT, W_ROW, W_COL,
    C: tl.constexpr, STRIDE: tl.constexpr, KERNEL: tl.constexpr, INDEXED: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, HAS_BIAS: tl.constexpr, STATISTICS: tl.constexpr,
    EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    MERGE: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """See the module. ROWS: positions of a group. Grid: (groups * row tiles * column tiles,)."""
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
    finish(
        acc, m, row_ok, col, col_ok, col[None, :], group, tile, COUT, TILES, COUT,
        bias_ptr, out_ptr, tiles_ptr, None, None,
        EPILOGUE, HAS_BIAS, STATISTICS, ACTIVATION, SLOPE, False,
    )  # fmt: skip
    if MERGE:
        groups = tl.num_programs(0) // (TILES * column_tiles)
        if is_last(tickets_ptr + pid_n, groups * TILES):
            merge_statistics(
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
    tickets_ptr,  # int32 (channel tiles)
    ROWS, H, W, P, Q, COUT, PAD, GROUP_STEPS, STEPS, CHUNK,
    C: tl.constexpr, STRIDE: tl.constexpr, KERNEL: tl.constexpr, INDEXED: tl.constexpr,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dW[o, k] = sum over positions of dy[m, o] * image[m, k]. Grid: (channel tiles, 1, splits).

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
    if is_last(tickets_ptr + tl.program_id(0), splits):
        # As many splits as there are processors: their loads must overlap.
        total = add_splits(partial_ptr, at, ok, splits, COUT * size, 256 // DEPTH)
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=ok)
