"""The log-likelihood of every code under Q and its gradient, in one launch.

A row r of Q's output holds, per categorical code, logits l of its classes; per continuous code a
mean m and a raw log deviation s. With p = softmax(l), and s clipped to the code's bounds:

    categorical  log Q = l_c - logsumexp(l)                       d/dl = onehot(c) - p
    Gaussian     log Q = -z^2/2 - s - log(2 pi)/2,                d/dm = z exp(-s)
                 z = (c - m) exp(-s)                              d/ds = z^2 - 1, 0 where clipped
    unit         the same with s = 0                              d/ds = 0

What is where comes from a table in memory (`kernels.code_table`): one compiled kernel serves every
mix of codes. Arithmetic is fp32; the gradient is rounded to the output's dtype.

counters_ptr: int32 (2 + arrival_counters): class indices out of range, rows with a NaN or an infinity, both
added to; then arrival_counters, 0 before and after a launch. A class out of range makes its row's value
and gradient NaN.
"""

from fastinfogan_kernels.conv_block.implicit_gemm_kernel import rectify
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.reduce import is_last, merge, merge_rows

HALF_LOG_2PI = tl.constexpr(0.9189385332046727)
NONE, MEAN, SUM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def count(counter_ptr, found):
    """Add how many are true; integers, so in any order."""
    number = tl.sum(found.to(tl.int32), axis=0)
    tl.atomic_add(counter_ptr, number, mask=number > 0, sem="relaxed")


@triton.jit
def classify(logits, k, label, width):
    """Value and gradient of a categorical code.

    logits: fp32 (rows, columns), -inf in columns that are not the code's.
    k: (columns,) the class that a column stands for.
    label: int64 (rows,).

    Returns (rows,), (rows, columns), and which labels are classes.
    """
    peak = tl.max(logits, axis=1)
    e = tl.exp(logits - peak[:, None])
    total = tl.sum(e, axis=1)
    hit = k[None, :] == label[:, None]
    chosen = tl.sum(tl.where(hit, logits, 0.0), axis=1)
    known = (label >= 0) & (label < width)
    value = tl.where(known, (chosen - peak) - tl.log(total), float("nan"))
    slope = tl.where(hit, 1.0, 0.0) - e / total[:, None]
    return value, tl.where(known[:, None], slope, float("nan")), known


@triton.jit
def gaussian(mean, raw, code, low, high, kind):
    """Value, and gradients by mean and raw log deviation, of a continuous code; all (rows,)."""
    # Comparisons keep a NaN, which minimum and maximum would drop.
    s = tl.where(raw < low, low, tl.where(raw > high, high, raw))
    s = tl.where(kind == 2, 0.0, s)
    narrow = tl.exp(-s)
    z = (code - mean) * narrow
    inside = (kind != 2) & (raw >= low) & (raw <= high)
    return -0.5 * z * z - s - HALF_LOG_2PI, z * narrow, tl.where(inside, z * z - 1.0, 0.0)


@triton.jit
def log_likelihood_kernel(
    output_ptr,  # (ROWS, WIDTH)
    classes_ptr,  # int64 (ROWS, categorical codes)
    continuous_ptr,  # fp32 (ROWS, continuous codes)
    table_ptr,  # int32 (CODES, 4)
    bounds_ptr,  # fp32 (CODES, 2)
    weights_ptr,  # fp32 (CODES)
    values_ptr,  # fp32 out: (ROWS, CODES) if REDUCTION is NONE, else (CODES)
    gradient_ptr,  # (ROWS, WIDTH) out
    parts_ptr,  # fp32 (CODES, row tiles), scratch
    counters_ptr,  # int32 (2 + CODES)
    ROWS, WIDTH, CODES, CATEGORICAL, CONTINUOUS,
    REDUCTION: tl.constexpr, MERGE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """See the module. Grid: (row tiles, CODES + 1); the last ones look for rows not finite.

    BLOCK_K holds the logits of any one code. With one tile of rows there is nothing to MERGE.
    """
    tile, code = tl.program_id(0), tl.program_id(1)
    tiles = tl.num_programs(0)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = row < ROWS
    at = row.to(tl.int64) * WIDTH
    k = tl.arange(0, BLOCK_K)
    if code == CODES:
        bad = tl.zeros((BLOCK_M,), tl.int32)
        for start in range(0, WIDTH, BLOCK_K):
            column = start + k
            x = tl.load(
                output_ptr + at[:, None] + column[None, :],
                mask=row_ok[:, None] & (column < WIDTH)[None, :],
                other=0.0,
            ).to(tl.float32)
            bad = tl.maximum(bad, tl.max(tl.where(tl.abs(x) < float("inf"), 0, 1), axis=1))
        count(counters_ptr + 1, bad)
    else:
        entry = table_ptr + code * 4
        kind, first = tl.load(entry), tl.load(entry + 1)
        width, index = tl.load(entry + 2), tl.load(entry + 3)
        weight = tl.load(weights_ptr + code)
        if REDUCTION == MEAN:
            weight = weight / ROWS
        if kind == 0:
            ok = row_ok[:, None] & (k < width)[None, :]
            place = at[:, None] + (first + k)[None, :]
            x = tl.load(output_ptr + place, mask=ok, other=float("-inf")).to(tl.float32)
            label = tl.load(
                classes_ptr + row.to(tl.int64) * CATEGORICAL + index, mask=row_ok, other=0
            )
            value, slope, known = classify(x, k, label, width)
            slope = (weight * slope).to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + place, slope, mask=ok)
            count(counters_ptr, row_ok & (known == 0))
        else:
            mean = tl.load(output_ptr + at + first, mask=row_ok, other=0.0).to(tl.float32)
            raw = tl.load(output_ptr + at + width, mask=row_ok, other=0.0).to(tl.float32)
            c = tl.load(
                continuous_ptr + row.to(tl.int64) * CONTINUOUS + index, mask=row_ok, other=0.0
            )
            low, high = tl.load(bounds_ptr + code * 2), tl.load(bounds_ptr + code * 2 + 1)
            value, by_mean, by_raw = gaussian(mean, raw, c, low, high, kind)
            by_mean = (weight * by_mean).to(gradient_ptr.dtype.element_ty)
            by_raw = (weight * by_raw).to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + at + first, by_mean, mask=row_ok)
            tl.store(gradient_ptr + at + width, by_raw, mask=row_ok)
        if REDUCTION == NONE:
            tl.store(values_ptr + row.to(tl.int64) * CODES + code, value, mask=row_ok)
        else:
            total = tl.sum(tl.where(row_ok, value, 0.0), axis=0)
            if MERGE:
                parts = parts_ptr + code * tiles
                tl.store(parts + tile, total)
                if is_last(counters_ptr + 2 + code, tiles):
                    total = merge(parts, tiles, 128)
                    if REDUCTION == MEAN:
                        total = total / ROWS
                    tl.store(values_ptr + code, total)
            else:
                if REDUCTION == MEAN:
                    total = total / ROWS
                tl.store(values_ptr + code, total)


@triton.jit
def q_head_kernel(
    y_ptr,  # (ROWS, DEPTH): the raw map of the block before
    params_ptr,  # fp32 (1, 3, FEATURES): scale, shift, -
    w_ptr,  # (WIDTH, DEPTH) by its strides
    bias_ptr,  # (WIDTH)
    classes_ptr,  # int64 (ROWS, categorical codes)
    continuous_ptr,  # fp32 (ROWS, continuous codes)
    table_ptr,  # int32 (CODES, 4)
    bounds_ptr,  # fp32 (CODES, 2)
    weights_ptr,  # fp32 (CODES)
    output_ptr,  # (ROWS, WIDTH) out, or None
    values_ptr,  # fp32 (CODES) out: means
    gradient_ptr,  # (ROWS, WIDTH) out
    bias_gradient_ptr,  # fp32 (WIDTH) out
    parts_ptr,  # fp32 (row tiles, WIDTH + CODES), scratch
    counters_ptr,  # int32 (3)
    ROWS, DEPTH, WIDTH, CODES, CATEGORICAL, CONTINUOUS, FEATURES, W_IN, W_OUT,
    NORM: tl.constexpr, SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Q's last layer and the likelihood of what it gives. Grid: (row tiles,).

    output = act(scale * y + shift) W^T + bias stays in registers, unrounded. BLOCK_N holds a whole
    row of it, BLOCK_C all codes.
    """
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    row_ok, n_ok = row < ROWS, n < WIDTH
    ok = row_ok[:, None] & n_ok[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, DEPTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_ok = k < DEPTH
        x_ok = row_ok[:, None] & k_ok[None, :]
        x = tl.load(y_ptr + row[:, None].to(tl.int64) * DEPTH + k[None, :], mask=x_ok, other=0.0)
        v = x.to(tl.float32)
        if NORM:
            feature = params_ptr + k % FEATURES
            scale = tl.load(feature, mask=k_ok, other=0.0)
            shift = tl.load(feature + FEATURES, mask=k_ok, other=0.0)
            v = scale[None, :] * v + shift[None, :]
        v = rectify(v, SLOPE)
        x = tl.where(x_ok, v, 0.0).to(y_ptr.dtype.element_ty)
        w = tl.load(
            w_ptr + k[:, None] * W_IN + n[None, :] * W_OUT,
            mask=k_ok[:, None] & n_ok[None, :],
            other=0.0,
        )
        acc = tl.dot(x, w.to(x.dtype), acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n_ok, other=0.0).to(tl.float32)[None, :]
    at = row[:, None].to(tl.int64) * WIDTH + n[None, :]
    if HAS_OUTPUT:
        tl.store(output_ptr + at, acc.to(output_ptr.dtype.element_ty), mask=ok)
    bad = tl.where(ok & ((tl.abs(acc) < float("inf")) == 0), 1, 0)
    count(counters_ptr + 1, tl.max(bad, axis=1))

    parts = parts_ptr + tile * (WIDTH + CODES)
    gradient = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for code in range(CODES):
        entry = table_ptr + code * 4
        kind, first = tl.load(entry), tl.load(entry + 1)
        width, index = tl.load(entry + 2), tl.load(entry + 3)
        weight = tl.load(weights_ptr + code) / ROWS
        if kind == 0:
            mine = (n >= first) & (n < first + width)
            label = tl.load(
                classes_ptr + row.to(tl.int64) * CATEGORICAL + index, mask=row_ok, other=0
            )
            logits = tl.where(mine[None, :], acc, float("-inf"))
            value, slope, known = classify(logits, n - first, label, width)
            gradient = tl.where(mine[None, :], weight * slope, gradient)
            count(counters_ptr, row_ok & (known == 0))
        else:
            is_mean, is_raw = (n == first)[None, :], (n == width)[None, :]
            mean = tl.sum(tl.where(is_mean, acc, 0.0), axis=1)
            raw = tl.sum(tl.where(is_raw, acc, 0.0), axis=1)
            c = tl.load(
                continuous_ptr + row.to(tl.int64) * CONTINUOUS + index, mask=row_ok, other=0.0
            )
            low, high = tl.load(bounds_ptr + code * 2), tl.load(bounds_ptr + code * 2 + 1)
            value, by_mean, by_raw = gaussian(mean, raw, c, low, high, kind)
            gradient = tl.where(is_mean, (weight * by_mean)[:, None], gradient)
            gradient = tl.where(is_raw, (weight * by_raw)[:, None], gradient)
        tl.store(parts + WIDTH + code, tl.sum(tl.where(row_ok, value, 0.0), axis=0))
    tl.store(gradient_ptr + at, gradient.to(gradient_ptr.dtype.element_ty), mask=ok)
    tl.store(parts + n, tl.sum(tl.where(ok, gradient, 0.0), axis=0), mask=n_ok)
    if is_last(counters_ptr + 2, tiles):
        total = merge_rows(parts_ptr, n, n_ok, tiles, WIDTH + CODES, 8)
        tl.store(bias_gradient_ptr + n, total, mask=n_ok)
        c0 = tl.arange(0, BLOCK_C)
        c_ok = c0 < CODES
        total = merge_rows(parts_ptr + WIDTH, c0, c_ok, tiles, WIDTH + CODES, 8)
        tl.store(values_ptr + c0, total / ROWS, mask=c_ok)
