"""D's last layer, the adversarial losses of its logits, and the gradients, in one launch.

Rows are in equal groups; the target of a group is 1 ("should be called real") or 0 ("generated"):

    z = -logit for 1, logit for 0       loss = mean softplus(z)       d/dlogit = -+ sigmoid(z)

The gradient is multiplied by a scale. Losses are fp32 at least; nothing overflows, NaN stays NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.conv_block.deferred import Deferred, leaky_relu
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.objective.code_layout import check_counters, constant
from fastinfogan_kernels.objective.last_layer import check_last_layer, linear, materialize_rows
from fastinfogan_kernels.objective.likelihood import count_true, resolve_backend
from fastinfogan_kernels.runtime.arrival_counters import is_last, sum_parts
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import Implementation, is_recording, launch, run_native
from fastinfogan_kernels.runtime.machine import machine_of, power_of_two
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty


def adversarial_losses(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """Compute the losses of groups of logits in plain torch; differentiable any number of times.

    Args:
        logits: any shape, any floating dtype; rows in as many equal groups as there are targets.
        targets: of each group, 1 for "should be called real", 0 for "generated".

    Returns:
        (groups,), nats, in fp32 or the logits' dtype if that is wider: means of softplus(-logit)
        for 1, -log D, and of softplus(logit) for 0, -log(1 - D).

    Raises:
        InputError: logits cannot be divided into such groups, or a target is neither 0 nor 1.
    """
    _check_targets(logits.numel(), targets)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    groups = wide.reshape(len(targets), -1)
    signs = constant([-1.0 if real else 1.0 for real in targets], wide.device, wide.dtype)
    return F.softplus(groups * signs[:, None]).mean(1)


def _check_targets(rows: int, targets: Sequence[int]) -> None:
    if not targets or any(target not in (0, 1) for target in targets):
        raise InputError(
            f"targets must be 1 (real) or 0 (generated) for each group of rows, not {list(targets)}"
        )
    if rows == 0 or rows % len(targets):
        raise InputError(f"{rows} logits cannot be divided into {len(targets)} equal groups")


@triton.jit
def softplus(z):
    """Return log(1 + exp(z)), precise also in the tail, where 1 + exp(z) rounds to 1."""
    e = tl.exp(-tl.abs(z))
    u = 1.0 + e
    # log1p(e): the logarithm of the rounded u, corrected for the rounding.
    tail = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(z > 0.0, z, 0.0) + tail


@triton.jit
def d_head_kernel(
    y_ptr,  # (GROUPS * ROWS, DEPTH): the previous block's raw output
    params_ptr,  # fp32 (GROUPS, 3, FEATURES): scale, shift, -
    w_ptr,  # (DEPTH)
    bias_ptr,  # (1)
    targets_ptr,  # int32 (GROUPS)
    logits_ptr,  # fp32 (GROUPS * ROWS) out
    losses_ptr,  # fp32 (GROUPS) out
    gradient_ptr,  # (GROUPS * ROWS) out
    bias_gradient_ptr,  # fp32 (1) out
    partials_ptr,  # fp32 (2, GROUPS, row tiles), scratch: losses, gradients
    counters_ptr,  # int32 (2): non-finite logits, arrival counter
    ROWS, DEPTH, GROUPS, FEATURES,
    SCALE,  # fp32 (1) on the device, or a number
    NORM: tl.constexpr, SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, SCALE_ON_DEVICE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute D's last layer, logit = act(scale * y + shift) . w + bias, and its losses.

    Grid: (row tiles, GROUPS). ROWS: of a group. One column: products are fp32, without tl.dot.
    """
    tile, group, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
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
        acc += tl.where(ok, leaky_relu(v, SLOPE) * w[None, :], 0.0)
    logit = tl.sum(acc, axis=1)
    if HAS_BIAS:
        logit += tl.load(bias_ptr).to(tl.float32)
    tl.store(logits_ptr + at, logit, mask=row_ok)
    if SCALE_ON_DEVICE:
        SCALE = tl.load(SCALE)
    real = tl.load(targets_ptr + group) != 0
    z = tl.where(real, -logit, logit)
    loss = softplus(z)
    slope = 1.0 / (1.0 + tl.exp(-z))
    slope = tl.where(real, -slope, slope) * SCALE / ROWS
    tl.store(gradient_ptr + at, slope.to(gradient_ptr.dtype.element_ty), mask=row_ok)
    count_true(counters_ptr, row_ok & ((tl.abs(logit) < float("inf")) == 0))
    partials = partials_ptr + group * tiles + tile
    tl.store(partials, tl.sum(tl.where(row_ok, loss, 0.0), axis=0))
    tl.store(partials + GROUPS * tiles, tl.sum(tl.where(row_ok, slope, 0.0), axis=0))
    if is_last(counters_ptr + 1, GROUPS * tiles):
        for i in range(GROUPS):
            tl.store(losses_ptr + i, sum_parts(partials_ptr + i * tiles, tiles, 128) / ROWS)
        bias_gradient = sum_parts(partials_ptr + GROUPS * tiles, GROUPS * tiles, 128)
        tl.store(bias_gradient_ptr, bias_gradient)


@register("d_head_objective", mutates_args=("counters",))
def d_head_op(
    y: Tensor, params: Tensor | None, slope: float, weight: Tensor, bias: Tensor | None,
    targets: Tensor, scale: float, device_scale: Tensor | None, counters: Tensor, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return logits, losses, gradient and bias gradient, by "native" or "triton"."""
    (all_rows, depth), groups = y.shape, targets.shape[0]
    rows = all_rows // groups
    logits, losses, bias_gradient = (
        empty(n, torch.float32, y.device) for n in (all_rows, groups, 1)
    )
    if impl == "native":
        wide_gradient = empty(all_rows, torch.float32, y.device)
        if device_scale is not None and not is_recording():
            scale = device_scale.item()
        run_native(
            "d_head_objective", materialize_rows(Deferred(y, params, slope)), weight.reshape(depth),
            None if bias is None else bias.float(), targets, scale, logits, losses, wide_gradient,
            counters[:1],
        )  # fmt: skip
        return logits, losses, wide_gradient.to(y.dtype), wide_gradient.sum(0, keepdim=True)
    gradient = empty(all_rows, y.dtype, y.device)
    m, k = 4, power_of_two(depth, 16, 512)
    tiles = triton.cdiv(rows, m)
    tensors = (y, params, weight, bias, targets)
    launch(
        d_head_kernel,
        (tiles, groups),
        *tensors,
        logits,
        losses,
        gradient,
        bias_gradient,
        empty((2, groups, tiles), torch.float32, y.device),
        counters,
        rows,
        depth,
        groups,
        depth if params is None else params.shape[2],
        float(scale) if device_scale is None else device_scale,
        NORM=params is not None,
        SLOPE=float(slope),
        HAS_BIAS=bias is not None,
        SCALE_ON_DEVICE=device_scale is not None,
        BLOCK_M=m,
        BLOCK_K=k,
        num_warps=4,
        **machine_of(y.device).limits,
        read=tensors,
        written=(logits, losses, gradient, bias_gradient),
    )
    return logits, losses, gradient, bias_gradient


class DHeadResult(NamedTuple):
    """The results of D's last layer.

    Attributes:
        logits: (R,), fp32, or fp64 of fp64.
        losses: means over each group; (groups,), nats.
        gradient: of scale times the sum of the losses by the logits; (R,), y's dtype.
        bias_gradient: of the same by the bias; (1,), fp32, or fp64 of fp64.
    """

    logits: Tensor
    losses: Tensor
    gradient: Tensor
    bias_gradient: Tensor


def d_head_objective(
    y: Deferred,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[int],
    scale: float | Tensor = 1.0,
    *,
    counters: Tensor | None = None,
    impl: Implementation = "auto",
) -> DHeadResult:
    """Compute D's last layer, the losses of its logits, and their gradients, without autograd.

    Args:
        y: the previous block's rows; (R, K), in as many statistics groups as there are targets.
        weight: (1, K), any dtype.
        bias: (1,) or None.
        targets: of each group of rows, 1 for "should be called real", 0 for "generated".
        scale: multiplies the gradients; a number, or fp32 (1,) on the device.
        counters: int32 (2,), zeroed once: non-finite logits, added to; and an arrival counter.
            Temporary ones if None.
        impl: the backend.

    Raises:
        InputError: shapes or devices do not fit, or `impl` cannot run here.
    """
    check_last_layer("D", y, weight, bias)
    if len(weight) != 1:
        raise InputError(f"D's last layer must have one output, not {len(weight)}")
    _check_targets(len(y.x), targets)
    if y.params is not None and y.params.shape[0] != len(targets):
        raise InputError(
            f"D's head has {len(targets)} targets for {y.params.shape[0]} statistics groups"
        )
    device, backend = y.x.device, resolve_backend(impl, y.x)
    if counters is not None:
        check_counters(counters, 2, device)
    if backend == "reference":
        return _reference(y, weight, bias, targets, float(scale), counters)
    on_device = isinstance(scale, Tensor)
    return DHeadResult(*d_head_op(
        y.x, y.params, y.slope, weight.contiguous(), bias,
        constant([int(target) for target in targets], device, torch.int32),
        1.0 if on_device else scale, scale if on_device else None,
        y.x.new_zeros(2, dtype=torch.int32) if counters is None else counters, backend,
    ))  # fmt: skip


def _reference(
    y: Deferred, weight: Tensor, bias: Tensor | None, targets: Sequence[int], scale: float,
    counters: Tensor | None,
) -> DHeadResult:  # fmt: skip
    rows = materialize_rows(y)
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    with torch.enable_grad():
        logits = linear(wide, weight, bias)[:, 0].detach().requires_grad_()
        losses = adversarial_losses(logits, targets)
        (gradient,) = torch.autograd.grad(losses.sum() * scale, logits)
    logits = logits.detach()
    if counters is not None:
        counters[:1] += (~logits.isfinite()).sum().to(torch.int32)
    return DHeadResult(
        logits, losses.detach(), gradient.to(rows.dtype), gradient.sum(0, keepdim=True)
    )
