"""Batch norm's few numbers, between the large kernels: merged in a fixed order, in fp32.

Forward: the tiles' (mean, M2) become mean and rstd, and with gamma and beta the scale and shift by
which whoever loads y forms the normalised value; running statistics are updated in place.

    mean = sum n_t mean_t / n      M2 = sum M2_t + n_t (mean_t - mean)^2
    scale = gamma * rstd           shift = beta - mean * scale

Sums of squares would not do: at mean / deviation 300 their variance is wrong by 1 %.

Backward: the tiles' sums S_g and S_gy = sum g * (y - mean) become the coefficients of

    dy = A * g + B * y + C,   A = gamma * rstd,  B = -A * rstd^2 * S_gy / n,
                              C = -A * S_g / n - B * mean

and dbeta = S_g, dgamma = S_gy * rstd, summed over the statistics groups.

Whoever writes the tiles merges them too: its last program of some columns, by `merge_statistics`
or `merge_sums`. Where that cannot be, a kernel of its own does.
"""

from fastinfogan_kernels.runtime.lang import tl, triton


@triton.jit
def merged(
    c, c_ok, tiles_ptr, TILES, ROW_TILES, ROWS, COUNT, FEATURES, TILE_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """(mean, M2) of the features c, of one group's tiles; see `bn_finalize_stats_kernel`.

    Tiles are loaded past the cache that may hold what stood there before this launch.
    """
    t0 = tl.arange(0, BLOCK_T)
    mean = tl.zeros(c.shape, tl.float32)
    for start in tl.range(0, TILES, BLOCK_T, loop_unroll_factor=4):
        t = start + t0
        ok = (t < TILES)[:, None] & c_ok[None, :]
        at = tiles_ptr + t[:, None] * 2 * FEATURES + c[None, :]
        tile_mean = tl.load(at, mask=ok, other=0.0, cache_modifier=".cg")
        n = tl.minimum(ROWS - (t % ROW_TILES) * TILE_ROWS, TILE_ROWS).to(tl.float32)
        mean += tl.sum(tile_mean * (n / COUNT)[:, None], axis=0)
    m2 = tl.zeros(c.shape, tl.float32)
    for start in tl.range(0, TILES, BLOCK_T, loop_unroll_factor=4):
        t = start + t0
        ok = (t < TILES)[:, None] & c_ok[None, :]
        at = tiles_ptr + t[:, None] * 2 * FEATURES + c[None, :]
        tile_mean = tl.load(at, mask=ok, other=0.0, cache_modifier=".cg")
        tile_m2 = tl.load(at + FEATURES, mask=ok, other=0.0, cache_modifier=".cg")
        n = tl.minimum(ROWS - (t % ROW_TILES) * TILE_ROWS, TILE_ROWS).to(tl.float32)
        off = tile_mean - mean[None, :]
        m2 += tl.sum(tl.where(ok, tile_m2 + n[:, None] * off * off, 0.0), axis=0)
    return mean, m2


@triton.jit
def merge_statistics(
    c, c_ok, tiles_ptr, gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr, params_ptr,
    rstd_ptr, GROUPS, TILES, ROW_TILES, ROWS, COUNT, FEATURES,
    TILE_ROWS: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Forward, for the features c; arguments as of `bn_finalize_stats_kernel`."""
    gamma = tl.load(gamma_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
    if running_mean_ptr is not None:
        running_mean = tl.load(running_mean_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
        running_var = tl.load(running_var_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
    for group in range(GROUPS):
        mean, m2 = merged(
            c, c_ok, tiles_ptr + group * TILES * 2 * FEATURES, TILES, ROW_TILES, ROWS, COUNT,
            FEATURES, TILE_ROWS, BLOCK_T,
        )  # fmt: skip
        variance = m2 / COUNT
        rstd = 1.0 / tl.sqrt(variance + EPS)
        scale = gamma * rstd
        to = params_ptr + group * 3 * FEATURES + c
        tl.store(to, scale, mask=c_ok)
        tl.store(to + FEATURES, beta - mean * scale, mask=c_ok)
        tl.store(to + 2 * FEATURES, mean, mask=c_ok)
        tl.store(rstd_ptr + group * FEATURES + c, rstd, mask=c_ok)
        if running_mean_ptr is not None:
            unbiased = m2 / (COUNT - 1.0)
            # A batch that is not finite leaves them alone, as `epilogue` does.
            finite = tl.abs(unbiased) < 3.0e38
            running_mean += tl.where(finite, MOMENTUM * (mean - running_mean), 0.0)
            running_var += tl.where(finite, MOMENTUM * (unbiased - running_var), 0.0)
    if running_mean_ptr is not None:
        kept = running_mean_ptr.dtype.element_ty
        tl.store(running_mean_ptr + c, running_mean.to(kept), mask=c_ok)
        tl.store(running_var_ptr + c, running_var.to(kept), mask=c_ok)


@triton.jit
def merge_sums(
    c, c_ok, tiles_ptr, gamma_ptr, params_ptr, rstd_ptr, coefficients_ptr, dgamma_ptr, dbeta_ptr,
    GROUPS, TILES, REPEATS, COUNT, FEATURES,
    NORM: tl.constexpr, BLOCK_T: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Backward, for the features c; arguments as of `bn_finalize_grads_kernel`.

    UNROLL: steps whose loads are in flight at once.
    """
    t0 = tl.arange(0, BLOCK_T)
    dgamma = tl.zeros(c.shape, tl.float32)
    dbeta = tl.zeros(c.shape, tl.float32)
    for group in range(GROUPS):
        s_g = tl.zeros(c.shape, tl.float32)
        s_gy = tl.zeros(c.shape, tl.float32)
        for start in tl.range(0, TILES * REPEATS, BLOCK_T, loop_unroll_factor=UNROLL):
            t = start + t0
            ok = (t < TILES * REPEATS)[:, None] & c_ok[None, :]
            row = group * TILES + t // REPEATS
            at = tiles_ptr + (
                row[:, None] * 2 * FEATURES * REPEATS
                + (t % REPEATS)[:, None] * FEATURES
                + c[None, :]
            )
            s_g += tl.sum(tl.load(at, mask=ok, other=0.0, cache_modifier=".cg"), axis=0)
            if NORM:
                at += FEATURES * REPEATS
                s_gy += tl.sum(tl.load(at, mask=ok, other=0.0, cache_modifier=".cg"), axis=0)
        dbeta += s_g
        if NORM:
            gamma = tl.load(gamma_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
            mean = tl.load(params_ptr + (group * 3 + 2) * FEATURES + c, mask=c_ok, other=0.0)
            rstd = tl.load(rstd_ptr + group * FEATURES + c, mask=c_ok, other=0.0)
            dgamma += s_gy * rstd
            a = gamma * rstd
            b = -a * rstd * rstd * s_gy / COUNT
            to = coefficients_ptr + group * 3 * FEATURES + c
            tl.store(to, a, mask=c_ok)
            tl.store(to + FEATURES, b, mask=c_ok)
            tl.store(to + 2 * FEATURES, -a * s_g / COUNT - b * mean, mask=c_ok)
    tl.store(dbeta_ptr + c, dbeta.to(dbeta_ptr.dtype.element_ty), mask=c_ok)
    if NORM:
        tl.store(dgamma_ptr + c, dgamma.to(dgamma_ptr.dtype.element_ty), mask=c_ok)


@triton.jit
def bn_finalize_stats_kernel(
    tiles_ptr,  # fp32 (GROUPS, TILES, 2, FEATURES)
    gamma_ptr, beta_ptr,  # (FEATURES)
    running_mean_ptr, running_var_ptr,  # (FEATURES), updated in place, or None
    params_ptr,  # fp32 (GROUPS, 3, FEATURES) out: scale, shift, mean
    rstd_ptr,  # fp32 (GROUPS, FEATURES) out
    TILES, ROW_TILES, ROWS, COUNT, FEATURES,
    GROUPS: tl.constexpr, TILE_ROWS: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """See the module. Grid: (blocks of features,).

    ROW_TILES tiles of TILE_ROWS rows, the last one of what is left of ROWS, make a phase; TILES is
    all phases. COUNT: values per feature and group.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    merge_statistics(
        c, c < FEATURES, tiles_ptr, gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr,
        params_ptr, rstd_ptr, GROUPS, TILES, ROW_TILES, ROWS, COUNT, FEATURES, TILE_ROWS, EPS,
        MOMENTUM, BLOCK_T,
    )  # fmt: skip


@triton.jit
def merge_tiles_kernel(
    tiles_ptr,  # fp32 (groups, TILES, 2, FEATURES)
    merged_ptr,  # fp32 (groups, 2, FEATURES) out: mean, M2
    TILES, ROW_TILES, ROWS, COUNT, FEATURES,
    TILE_ROWS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One rank's tiles become one, for the other ranks. Grid: (blocks of features, groups)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.program_id(1)
    mean, m2 = merged(
        c, c < FEATURES, tiles_ptr + group * TILES * 2 * FEATURES, TILES, ROW_TILES, ROWS, COUNT,
        FEATURES, TILE_ROWS, BLOCK_T,
    )  # fmt: skip
    to = merged_ptr + group * 2 * FEATURES + c
    tl.store(to, mean, mask=c < FEATURES)
    tl.store(to + FEATURES, m2, mask=c < FEATURES)


@triton.jit
def bn_finalize_grads_kernel(
    tiles_ptr,  # fp32 (GROUPS, TILES, 2, FEATURES * REPEATS)
    gamma_ptr,  # (FEATURES)
    params_ptr,  # fp32 (GROUPS, 3, FEATURES): scale, shift, mean
    rstd_ptr,  # fp32 (GROUPS, FEATURES)
    coefficients_ptr,  # fp32 (GROUPS, 3, FEATURES) out: A, B, C
    dgamma_ptr, dbeta_ptr,  # (FEATURES) out
    TILES, REPEATS, COUNT, FEATURES,
    GROUPS: tl.constexpr, NORM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """See the module. Grid: (blocks of features,).

    REPEATS: a fully connected layer's columns are pixels * channels; each channel's are summed.
    Without NORM only dbeta is written: the gradient of a bias.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    merge_sums(
        c, c < FEATURES, tiles_ptr, gamma_ptr, params_ptr, rstd_ptr, coefficients_ptr, dgamma_ptr,
        dbeta_ptr, GROUPS, TILES, REPEATS, COUNT, FEATURES, NORM, BLOCK_T, 4,
    )  # fmt: skip
