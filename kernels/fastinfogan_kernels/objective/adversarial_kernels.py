"""D's losses, their gradients and, if wanted, the logits that they are of, in one launch.

Rows lie in equal groups; a group's target says what D should call its rows, 1 real, 0 generated:

    z = -logit for 1, logit for 0       loss = mean softplus(z)       d/dlogit = -+ sigmoid(z)

The gradient is multiplied by SCALE / rows of the group. fp32; nothing overflows, NaN stays NaN.
counters_ptr: int32 (2): rows whose logit is a NaN or an infinity, added to; the ticket.
"""

from fastinfogan_kernels.conv_block.implicit_gemm_kernel import rectify
from fastinfogan_kernels.objective.likelihood_kernels import count
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.reduce import is_last, merge


@triton.jit
def softplus(z):
    """log(1 + exp(z)), precise in the tail too, where 1 + exp(z) rounds to 1."""
    e = tl.exp(-tl.abs(z))
    u = 1.0 + e
    # log1p(e): the logarithm of the rounded u, corrected by what was rounded away.
    tail = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(z > 0.0, z, 0.0) + tail


@triton.jit
def leave_losses(
    logit, row_ok, group, tile, tiles, targets_ptr, gradient_ptr, at, losses_ptr,
    bias_gradient_ptr, parts_ptr, counters_ptr, ROWS, GROUPS, SCALE, SUM: tl.constexpr,
):  # fmt: skip
    """Everything behind the logits, fp32 (rows), of one tile of a group.

    at: where the rows are. parts_ptr: fp32 (2, GROUPS, tiles): sums of losses, and of gradients
    if their SUM, the bias' gradient, is wanted.
    """
    real = tl.load(targets_ptr + group) != 0
    z = tl.where(real, -logit, logit)
    loss = softplus(z)
    slope = 1.0 / (1.0 + tl.exp(-z))
    slope = tl.where(real, -slope, slope) * SCALE / ROWS
    tl.store(gradient_ptr + at, slope.to(gradient_ptr.dtype.element_ty), mask=row_ok)
    count(counters_ptr, row_ok & ((tl.abs(logit) < float("inf")) == 0))
    parts = parts_ptr + group * tiles + tile
    tl.store(parts, tl.sum(tl.where(row_ok, loss, 0.0), axis=0))
    if SUM:
        tl.store(parts + GROUPS * tiles, tl.sum(tl.where(row_ok, slope, 0.0), axis=0))
    if is_last(counters_ptr + 1, GROUPS * tiles):
        for each in range(GROUPS):
            tl.store(losses_ptr + each, merge(parts_ptr + each * tiles, tiles, 128) / ROWS)
        if SUM:
            by_bias = merge(parts_ptr + GROUPS * tiles, GROUPS * tiles, 128)
            tl.store(bias_gradient_ptr, by_bias)


@triton.jit
def adversarial_kernel(
    logits_ptr,  # (GROUPS * ROWS)
    targets_ptr,  # int32 (GROUPS)
    losses_ptr,  # fp32 (GROUPS) out
    gradient_ptr,  # (GROUPS * ROWS) out
    parts_ptr,  # fp32 (1, GROUPS, row tiles), scratch
    counters_ptr,  # int32 (2)
    ROWS, GROUPS, SCALE,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """See the module. Grid: (row tiles, GROUPS). ROWS: of a group."""
    tile, group = tl.program_id(0), tl.program_id(1)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = row < ROWS
    at = group.to(tl.int64) * ROWS + row
    logit = tl.load(logits_ptr + at, mask=row_ok, other=0.0).to(tl.float32)
    leave_losses(
        logit, row_ok, group, tile, tl.num_programs(0), targets_ptr, gradient_ptr, at, losses_ptr,
        None, parts_ptr, counters_ptr, ROWS, GROUPS, SCALE, False,
    )  # fmt: skip


@triton.jit
def d_head_kernel(
    y_ptr,  # (GROUPS * ROWS, DEPTH): the raw map of the block before
    params_ptr,  # fp32 (GROUPS, 3, FEATURES): scale, shift, -
    w_ptr,  # (DEPTH)
    bias_ptr,  # (1)
    targets_ptr,  # int32 (GROUPS)
    logits_ptr,  # fp32 (GROUPS * ROWS) out
    losses_ptr,  # fp32 (GROUPS) out
    gradient_ptr,  # (GROUPS * ROWS) out
    bias_gradient_ptr,  # fp32 (1) out
    parts_ptr,  # fp32 (2, GROUPS, row tiles), scratch
    counters_ptr,  # int32 (2)
    ROWS, DEPTH, GROUPS, FEATURES,
    SCALE,  # fp32 (1) on the device, or a number
    NORM: tl.constexpr, SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, SCALE_ON_DEVICE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """D's last layer, logit = act(scale * y + shift) . w + bias, and the losses of its logits.

    Grid: (row tiles, GROUPS). ROWS: of a group. One column: products are fp32, on no matrix unit.
    """
    tile, group = tl.program_id(0), tl.program_id(1)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = row < ROWS
    at = group.to(tl.int64) * ROWS + row
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for start in range(0, DEPTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_ok = k < DEPTH
        ok = row_ok[:, None] & k_ok[None, :]
        v = tl.load(y_ptr + at[:, None] * DEPTH + k[None, :], mask=ok, other=0.0).to(tl.float32)
        if NORM:
            feature = params_ptr + group * 3 * FEATURES + k % FEATURES
            scale = tl.load(feature, mask=k_ok, other=0.0)
            shift = tl.load(feature + FEATURES, mask=k_ok, other=0.0)
            v = scale[None, :] * v + shift[None, :]
        w = tl.load(w_ptr + k, mask=k_ok, other=0.0).to(tl.float32)
        acc += tl.where(ok, rectify(v, SLOPE) * w[None, :], 0.0)
    logit = tl.sum(acc, axis=1)
    if HAS_BIAS:
        logit += tl.load(bias_ptr).to(tl.float32)
    tl.store(logits_ptr + at, logit, mask=row_ok)
    if SCALE_ON_DEVICE:
        SCALE = tl.load(SCALE)
    leave_losses(
        logit, row_ok, group, tile, tl.num_programs(0), targets_ptr, gradient_ptr, at, losses_ptr,
        bias_gradient_ptr, parts_ptr, counters_ptr, ROWS, GROUPS, SCALE, True,
    )  # fmt: skip
