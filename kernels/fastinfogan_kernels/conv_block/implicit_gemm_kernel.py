"""The product in every map and every data gradient, with what stands before and behind it.

    out[n, p, q, o] = sum over taps t, channels i of  W[t, i, o] * pro(x[n, at(p, q, t), i])

PROLOGUE, formed while loading, never stored:
    0 plain     x
    1 activate  lrelu(scale * x + shift)     the activation of the block before; x is its raw y
    2 gradient  A * g + B * y + C            batch norm's backward; x is g, and y is read beside it

EPILOGUE, behind the product, on the tile in registers:
    0 forward   + bias, round, store; each tile's (mean, M2) per channel of the rounded values
    1 activated + bias, activation, store    evaluation, and layers without batch norm at an end
    2 gradient  * lrelu'(scale * y + shift) of the block before, round, store; each tile's sums of
                g and of g * (y - mean), from which batch norm's backward follows

The depth may be cut into splits, whose partial sums in fp32 the last program of a tile adds in
order. With MERGE the last program of a block of columns makes of the tiles' numbers what
`statistics` says: batch norm's of this block, or on the way back of the block before.

Layout: NHWC everywhere; scale, shift, mean, A, B, C in fp32, one set per statistics group (the
batch is cut into `groups` equal parts). See `geometry` for at(p, q, t). fp32 accumulation.
"""

from fastinfogan_kernels.conv_block.bn_stats_kernels import merge_statistics, merge_sums
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.reduce import add_splits, is_last


@triton.jit
def rectify(z, SLOPE: tl.constexpr):
    """Leaky ReLU; NaN stays NaN and -inf times slope 0 does not become NaN."""
    if SLOPE == 0.0:
        out = tl.where(z <= 0.0, 0.0, z)
    elif SLOPE == 1.0:
        out = z
    else:
        out = tl.where(z <= 0.0, z * SLOPE, z)
    return out


@triton.jit
def activate(z, KIND: tl.constexpr, SLOPE: tl.constexpr):
    """The activation behind a product, in fp32."""
    if KIND == 1:
        z = rectify(z, SLOPE)
    elif KIND == 2:
        z = tl.sigmoid(z)
    elif KIND == 3:
        z = 2.0 * tl.sigmoid(2.0 * z) - 1.0
    return z


@triton.jit
def finish(
    acc, row, row_ok, col, col_ok, feature, group, tile, COUT, TILES, FEATURES,
    bias_ptr, out_ptr, tiles_ptr, before_ptr, before_params_ptr,
    EPILOGUE: tl.constexpr, HAS_BIAS: tl.constexpr, STATISTICS: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BEFORE_NORM: tl.constexpr,
):  # fmt: skip
    """Everything behind the product, on one tile (rows x columns) in fp32.

    feature: (1, columns), index into the parameters of the block before.
    tiles_ptr: fp32 (groups, TILES, 2, COUT).
    before_params_ptr: fp32 (groups, 3, FEATURES): scale, shift, mean.
    """
    ok = row_ok[:, None] & col_ok[None, :]
    at = row[:, None].to(tl.int64) * COUT + col[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + col, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    if EPILOGUE == 1:
        acc = activate(acc, ACTIVATION, SLOPE)
    if EPILOGUE == 2:
        y = tl.load(before_ptr + at, mask=ok, other=0.0).to(tl.float32)
        z = y
        if BEFORE_NORM:
            params = before_params_ptr + group * 3 * FEATURES + feature
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
            if BEFORE_NORM:
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
    before_ptr,  # (N, HO, WO, COUT)
    before_params_ptr,  # fp32 (groups, 3, FEATURES_OUT)
    partial_ptr,  # fp32 (splits, N, COUT), scratch, or None without splits
    tickets_ptr,  # int32 (column tiles + tiles)
    gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr, new_params_ptr, rstd_ptr,  # forward's
    before_gamma_ptr, before_rstd_ptr, coefficients_ptr, dgamma_ptr, dbeta_ptr,  # backward's
    IMAGES, SIZE, H, W, CIN, HO, WO, COUT, P, Q, TILES, PAD, FEATURES_IN, FEATURES_OUT, CHUNK,
    W_IN, W_OUT, W_ROW, W_COL,
    TRANSPOSED: tl.constexpr, STRIDE: tl.constexpr, KERNEL: tl.constexpr, TAPS: tl.constexpr,
    PROLOGUE: tl.constexpr, IN_NORM: tl.constexpr, IN_SLOPE: tl.constexpr, IN_PIXEL: tl.constexpr,
    EPILOGUE: tl.constexpr, HAS_BIAS: tl.constexpr, STATISTICS: tl.constexpr,
    ACTIVATION: tl.constexpr, OUT_SLOPE: tl.constexpr, BEFORE_NORM: tl.constexpr,
    MERGE: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """See the module. Grid: (groups * row tiles * column tiles, phases, splits).

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
    # Nested, not one flattened loop: a flattened one was seen to miscompile at 8 warps.
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
                        v = rectify(v, IN_SLOPE)
                    else:
                        y = tl.load(y_ptr + x_row[:, None] + k[None, :], mask=ok, other=0.0)
                        params = params_ptr + group * 3 * FEATURES_IN + feature
                        a = tl.load(params, mask=params_ok, other=0.0)
                        b = tl.load(params + FEATURES_IN, mask=params_ok, other=0.0)
                        d = tl.load(params + 2 * FEATURES_IN, mask=params_ok, other=0.0)
                        v = a * v + b * y.to(tl.float32) + d
                    # What padding and masks leave out is 0 behind the prologue, not in front of it.
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
        last = is_last(tickets_ptr + column_tiles + pid, tl.num_programs(2))
    if last:
        if partial_ptr is not None:
            product = add_splits(partial_ptr, at, ok, tl.num_programs(2), SIZE, 1)
        else:
            product = acc
        finish(
            product, row, row_ok, col, col_ok, (col % FEATURES_OUT)[None, :], group,
            phase * row_tiles + tile, COUT, TILES, FEATURES_OUT, bias_ptr, out_ptr, tiles_ptr,
            before_ptr, before_params_ptr,
            EPILOGUE, HAS_BIAS, STATISTICS, ACTIVATION, OUT_SLOPE, BEFORE_NORM,
        )  # fmt: skip
        if MERGE:
            # Columns are features, or features once more for each pixel; see the host side.
            block = pid_n % tl.cdiv(FEATURES_OUT, BLOCK_N)
            groups = tl.num_programs(0) // (row_tiles * column_tiles)
            repeats = COUT // FEATURES_OUT
            count = IMAGES * HO * WO * repeats
            c = block * BLOCK_N + tl.arange(0, BLOCK_N)
            if is_last(tickets_ptr + block, groups * TILES * repeats):
                if EPILOGUE == 2:
                    merge_sums(
                        c, c < FEATURES_OUT, tiles_ptr, before_gamma_ptr, before_params_ptr,
                        before_rstd_ptr, coefficients_ptr, dgamma_ptr, dbeta_ptr, groups, TILES,
                        repeats, count, FEATURES_OUT, BEFORE_NORM, 32, 4,
                    )  # fmt: skip
                else:
                    merge_statistics(
                        c, c < FEATURES_OUT, tiles_ptr, gamma_ptr, beta_ptr, running_mean_ptr,
                        running_var_ptr, new_params_ptr, rstd_ptr, groups, TILES, row_tiles, rows,
                        count, FEATURES_OUT, BLOCK_M, EPS, MOMENTUM, 32,
                    )  # fmt: skip
