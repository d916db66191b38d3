"""The passes at the ends of a chain, and those around a convolution that is not ours.

Inside a chain nothing of this runs: activations are formed while loading. Where a chain begins or
ends, or where ATen's convolution takes the place of our product, tensors must be written out.

    materialize      out = act(scale * y + shift)
    act_backward_reduce   g = dout * act'(scale * y + shift), and each tile's sums of g and of
                     g * (y - mean); without batch norm y is the activated output, which tells
                     act' as well; with MERGE the last program of some columns makes of the sums
                     what `statistics` says
    bn_backward_apply    dy = A * g + B * y + C
    tile_statistics  each tile's (mean, M2) of y

All see a matrix (rows, COLUMNS), rows cut into equal statistics groups.
"""

from fastinfogan_kernels.conv_block.bn_stats_kernels import merge_sums
from fastinfogan_kernels.conv_block.implicit_gemm_kernel import activate
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.reduce import is_last


@triton.jit
def tile_of(ROWS, COLUMNS, TILES, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where a program works: group, tile, column, element offsets, and what of it exists."""
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
    """See the module. params: fp32 (groups, 3, COLUMNS): scale, shift, mean."""
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
    coefficients_ptr, dgamma_ptr, dbeta_ptr, tickets_ptr, ROWS, COLUMNS, TILES,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, MERGE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """See the module. tiles: fp32 (groups, TILES, 2, COLUMNS) out. arrival_counters: (column tiles,)."""
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
        if is_last(tickets_ptr + tl.program_id(0) % column_tiles, parts):
            # The wider a tile, the fewer steps at once: no more registers than the pass itself has.
            merge_sums(
                col, col_ok, tiles_ptr, gamma_ptr, params_ptr, rstd_ptr, coefficients_ptr,
                dgamma_ptr, dbeta_ptr, parts // TILES, TILES, 1, ROWS, COLUMNS, NORM, 32,
                64 // BLOCK_N,
            )  # fmt: skip


@triton.jit
def bn_backward_apply_kernel(
    g_ptr, y_ptr, coefficients_ptr, dy_ptr, ROWS, COLUMNS, TILES,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """See the module. coefficients: fp32 (groups, 3, COLUMNS): A, B, C."""
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
    """See the module. tiles: fp32 (groups, TILES, 2, COLUMNS) out."""
    group, tile, row_ok, col, col_ok, at, ok = tile_of(ROWS, COLUMNS, TILES, BLOCK_M, BLOCK_N)
    y = tl.load(y_ptr + at, mask=ok, other=0.0).to(tl.float32)
    mean = tl.sum(y, axis=0) / tl.sum(row_ok.to(tl.float32), axis=0)
    centred = tl.where(ok, y - mean[None, :], 0.0)
    to = tiles_ptr + (group * TILES + tile) * 2 * COLUMNS + col
    tl.store(to, mean, mask=col_ok)
    tl.store(to + COLUMNS, tl.sum(centred * centred, axis=0), mask=col_ok)
