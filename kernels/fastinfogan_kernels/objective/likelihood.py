"""The log-likelihood of each code under Q, log Q(c|x), and its gradient in the same launch.

A row of Q's output holds, per categorical code, logits l of its classes; per continuous code a
mean m and a raw log deviation s. With p = softmax(l), and s clipped to the code's bounds:

    categorical  log Q = l_c - logsumexp(l)                       d/dl = onehot(c) - p
    Gaussian     log Q = -z^2/2 - s - log(2 pi)/2,                d/dm = z exp(-s)
                 z = (c - m) exp(-s)                              d/ds = z^2 - 1, 0 where clipped
    unit         the same with s = 0                              d/ds = 0

    q_head_log_likelihood      differentiable, for any project
    likelihood_with_gradient   values and gradient at once, without autograd
    reference_log_likelihood   the definition, in plain torch

Arithmetic is fp32 at least; the gradient is rounded to the output's dtype. `q_head` computes Q's
last layer in the same launch.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.latents import LatentSpec
from fastinfogan_kernels.objective.code_layout import (
    CATEGORICAL,
    UNIT_GAUSSIAN,
    CodeEntry,
    CodeTable,
    check_counters,
    check_inputs,
    check_weights,
    code_table,
    constant,
    entries,
    make_counters,
    weights_tensor,
)
from fastinfogan_kernels.runtime.arrival_counters import is_last, sum_parts
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import (
    KERNEL_DTYPES,
    Chosen,
    Implementation,
    choose,
    launch,
    run_native,
)
from fastinfogan_kernels.runtime.machine import machine_of, power_of_two
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty, empty_like

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_TILE = 2048  # values of a program's tile: 16 registers a thread for each intermediate


def resolve_backend(impl: Implementation, x: Tensor) -> Chosen:
    """Resolve "auto" as `choose` does, but to plain torch for fp64, which no kernel computes.

    Raises:
        InputError: `impl` cannot run on this tensor.
    """
    if x.dtype not in KERNEL_DTYPES:
        if impl in ("auto", "reference"):
            return "reference"
        raise InputError(
            f"impl={impl!r} computes in fp32 from fp32, bf16 or fp16, not from {x.dtype}; "
            "use impl='reference'"
        )
    return choose(impl, x.device)


# --- reference -----------------------------------------------------------------------------------


def reference_log_likelihood(
    output: Tensor, classes: Tensor, continuous: Tensor, spec: LatentSpec
) -> Tensor:
    """Compute log Q(c|x) of each row and code in plain torch, differentiable any number of times.

    Args:
        output: Q's raw output; (B, output_width), any floating dtype.
        classes: categorical codes; int64 (B, categorical codes).
        continuous: continuous codes; (B, continuous codes).
        spec: the layout.

    Returns:
        (B, codes), nats, in fp32 or the output's dtype if that is wider: log softmax at the true
        class, and the Gaussian log density with its log(2 pi) / 2. NaN, as its gradient, where a
        class is out of range.
    """
    wide = output.to(torch.promote_types(output.dtype, torch.float32))
    values = []
    for entry in entries(spec):
        if entry.kind == CATEGORICAL:
            logits = wide[:, entry.column : entry.column + entry.width]
            label = classes[:, entry.index : entry.index + 1]
            known = label.clamp(0, entry.width - 1)
            # A factor instead of torch.where, so that the gradient is NaN as well.
            factor = torch.where(known == label, 1.0, math.nan)
            values.append((F.log_softmax(logits, dim=1).gather(1, known) * factor)[:, 0])
        else:
            values.append(_reference_gaussian(wide, continuous, entry))
    return torch.stack(values, dim=1) if values else wide.new_zeros(len(wide), 0)


def _reference_gaussian(wide: Tensor, continuous: Tensor, entry: CodeEntry) -> Tensor:
    raw = wide[:, entry.width]
    log_deviation = torch.zeros_like(raw)
    if entry.kind != UNIT_GAUSSIAN:
        log_deviation = raw if entry.low == -math.inf else raw.clamp(entry.low, entry.high)
    distance = (continuous[:, entry.index] - wide[:, entry.column]) * torch.exp(-log_deviation)
    return -0.5 * distance.square() - log_deviation - _HALF_LOG_2PI


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return rows
    return rows.mean(0) if reduction == "mean" else rows.sum(0)


# --- kernel --------------------------------------------------------------------------------------

HALF_LOG_2PI = tl.constexpr(_HALF_LOG_2PI)
NONE, MEAN, SUM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def count_true(counter_ptr, condition):
    """Add the number of true elements to a counter."""
    number = tl.sum(condition.to(tl.int32), axis=0)
    tl.atomic_add(counter_ptr, number, mask=number > 0, sem="relaxed")


@triton.jit
def categorical_log_likelihood(logits, k, label, width):
    """Return value (rows,) and gradient (rows, columns) of a categorical code, and label validity.

    logits: fp32 (rows, columns), -inf in columns outside the code.
    k: (columns,), the class of each column.
    label: int64 (rows,).
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
def gaussian_log_likelihood(mean, raw, code, low, high, kind):
    """Return value, and gradients by mean and raw log deviation, of a continuous code; (rows,)."""
    # Comparisons propagate NaN, which minimum and maximum would drop.
    s = tl.where(raw < low, low, tl.where(raw > high, high, raw))
    s = tl.where(kind == 2, 0.0, s)
    inverse = tl.exp(-s)
    z = (code - mean) * inverse
    inside = (kind != 2) & (raw >= low) & (raw <= high)
    return -0.5 * z * z - s - HALF_LOG_2PI, z * inverse, tl.where(inside, z * z - 1.0, 0.0)


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
    counters_ptr,  # int32 (2 + CODES): invalid classes, non-finite rows, arrival counters
    ROWS, WIDTH, CODES, CATEGORICAL, CONTINUOUS,
    REDUCTION: tl.constexpr, MERGE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute log Q. Grid: (row tiles, CODES + 1); the last column counts non-finite rows.

    BLOCK_K holds the logits of any one code. MERGE: there is more than one tile of rows.
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
        count_true(counters_ptr + 1, bad)
    else:
        entry = table_ptr + code * 4
        kind, first = tl.load(entry), tl.load(entry + 1)
        width, index = tl.load(entry + 2), tl.load(entry + 3)
        weight = tl.load(weights_ptr + code)
        if REDUCTION == MEAN:
            weight = weight / ROWS
        if kind == 0:
            ok = row_ok[:, None] & (k < width)[None, :]
            address = at[:, None] + (first + k)[None, :]
            x = tl.load(output_ptr + address, mask=ok, other=float("-inf")).to(tl.float32)
            label = tl.load(
                classes_ptr + row.to(tl.int64) * CATEGORICAL + index, mask=row_ok, other=0
            )
            value, slope, known = categorical_log_likelihood(x, k, label, width)
            slope = (weight * slope).to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + address, slope, mask=ok)
            count_true(counters_ptr, row_ok & (known == 0))
        else:
            mean = tl.load(output_ptr + at + first, mask=row_ok, other=0.0).to(tl.float32)
            raw = tl.load(output_ptr + at + width, mask=row_ok, other=0.0).to(tl.float32)
            c = tl.load(
                continuous_ptr + row.to(tl.int64) * CONTINUOUS + index, mask=row_ok, other=0.0
            )
            low, high = tl.load(bounds_ptr + code * 2), tl.load(bounds_ptr + code * 2 + 1)
            value, by_mean, by_raw = gaussian_log_likelihood(mean, raw, c, low, high, kind)
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
                    total = sum_parts(parts, tiles, 128)
                    if REDUCTION == MEAN:
                        total = total / ROWS
                    tl.store(values_ptr + code, total)
            else:
                if REDUCTION == MEAN:
                    total = total / ROWS
                tl.store(values_ptr + code, total)


# --- operation -----------------------------------------------------------------------------------


@register("q_head_log_likelihood", mutates_args=("counters",))
def log_likelihood_op(
    output: Tensor, classes: Tensor, continuous: Tensor, table: Tensor, bounds: Tensor,
    weights: Tensor, counters: Tensor, widest: int, reduction: str, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return values, unweighted, and the gradient of weights * values, by "native" or "triton"."""
    (rows, width), codes = output.shape, table.shape[0]
    shape = (rows, codes) if reduction == "none" else (codes,)
    values = empty(shape, torch.float32, output.device)
    gradient = empty_like(output)
    tensors = (output, classes, continuous, table, bounds)
    if impl == "native":
        _run_native(tensors, weights, counters, reduction, values, gradient)
        return values, gradient
    block_k = power_of_two(widest, 16, 1 << 16)
    block_m = max(1, min(_TILE // block_k, power_of_two(rows, 1, 128)))
    tiles = triton.cdiv(rows, block_m)
    merged = reduction != "none" and tiles > 1
    partials = empty((codes, tiles), torch.float32, values.device) if merged else None
    launch(
        log_likelihood_kernel,
        (tiles, codes + 1),
        *tensors,
        weights,
        values,
        gradient,
        partials,
        counters,
        rows,
        width,
        codes,
        classes.shape[1],
        continuous.shape[1],
        REDUCTION=REDUCTIONS.index(reduction),
        MERGE=merged,
        BLOCK_M=block_m,
        BLOCK_K=block_k,
        num_warps=4,
        **machine_of(output.device).limits,
        read=(*tensors, weights),
        written=(values, gradient),
    )
    return values, gradient


def _run_native(
    tensors: tuple[Tensor, ...], weights: Tensor, counters: Tensor, reduction: str,
    values: Tensor, gradient: Tensor,
) -> None:  # fmt: skip
    rows, codes = tensors[0].shape[0], tensors[3].shape[0]
    scales = weights / rows if reduction == "mean" else weights
    means = empty(codes, torch.float32, values.device) if reduction == "none" else values
    per_row = values if reduction == "none" else None
    run_native("q_head_log_likelihood", *tensors, scales, per_row, means, gradient, counters[:2])
    if reduction == "sum":
        values *= rows


# --- autograd ------------------------------------------------------------------------------------


class _LogLikelihood(torch.autograd.Function):
    """Compute the gradient in forward; backward multiplies it by the upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor, classes: Tensor, continuous: Tensor, table: CodeTable, counters: Tensor,
        spec: LatentSpec, reduction: str, impl: str,
    ) -> Tensor:  # fmt: skip
        values: Tensor
        values, gradient = log_likelihood_op(
            output, classes, continuous, table.table, table.bounds, table.ones, counters,
            table.widest, reduction, impl,
        )  # fmt: skip
        ctx.spec, ctx.reduction = spec, reduction
        ctx.save_for_backward(output, classes, continuous, table.owners, gradient)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        output, classes, continuous, owners, gradient = ctx.saved_tensors
        others = (None,) * 7
        if torch.is_grad_enabled():  # double backward
            rows = reference_log_likelihood(output, classes, continuous, ctx.spec)
            values = _reduce(rows, ctx.reduction)
            (found,) = torch.autograd.grad(values, output, upstream, create_graph=True)
            return found, *others
        factor = upstream.index_select(-1, owners)
        return (gradient * factor).to(gradient.dtype), *others


def q_head_log_likelihood(
    output: Tensor,
    classes: Tensor,
    continuous: Tensor,
    spec: LatentSpec,
    *,
    weights: Sequence[float] | None = None,
    reduction: Reduction = "mean",
    counters: Tensor | None = None,
    table: CodeTable | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """Compute the log-likelihood of each code, differentiable by `output`.

    Forward is one launch, which also writes the gradient; backward is one multiplication by it.
    Double backward, fp64, and codes that require gradients go through plain torch.

    Args:
        output: Q's raw output; (B, output_width), fp32, bf16, fp16 or fp64.
        classes: categorical codes; integers (B, categorical codes).
        continuous: continuous codes; (B, continuous codes).
        spec: the layout.
        weights: one number per code, by which its log-likelihood is multiplied.
        reduction: over the batch: "mean", "sum", or "none".
        counters: see `make_counters`; temporary ones if None.
        table: `code_table` of the spec on this device, if at hand.
        impl: the backend.

    Returns:
        (codes,), or (B, codes) for "none", nats; fp32, or fp64 of fp64.

    Raises:
        InputError: shapes, dtypes or devices do not fit, or `impl` cannot run here.
    """
    inputs = check_inputs(output, classes, continuous, spec)
    weighted = None if weights is None else check_weights(weights, spec)
    backend, device = resolve_backend(impl, output), output.device
    if counters is not None:
        check_counters(counters, 2 + len(spec.codes), device)
    if backend == "reference" or continuous.requires_grad or not spec.codes:
        if counters is not None:
            inputs.count_invalid(spec, counters)
        values = _reduce(reference_log_likelihood(*inputs, spec), reduction)
    else:
        table = code_table(spec, device) if table is None else table
        counters = make_counters(spec, device) if counters is None else counters
        values = _LogLikelihood.apply(  # type: ignore[no-untyped-call]
            *inputs, table, counters, spec, reduction, backend
        )
    return values if weighted is None else values * constant(weighted, device, values.dtype)


def likelihood_with_gradient(
    output: Tensor,
    classes: Tensor,
    continuous: Tensor,
    spec: LatentSpec,
    *,
    weights: Sequence[float] | Tensor | None = None,
    reduction: Reduction = "mean",
    counters: Tensor | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute the values of `q_head_log_likelihood` and their gradient, without autograd.

    Arguments and errors are the same, except that `weights` scale the gradient alone and may be a
    tensor on the device.

    Returns:
        Values, unweighted; and the gradient of weights * values by the output, (B, output_width),
        in the output's dtype.
    """
    inputs = check_inputs(output.detach(), classes, continuous, spec)
    backend, device = resolve_backend(impl, output), output.device
    if counters is not None:
        check_counters(counters, 2 + len(spec.codes), device)
    if not spec.codes:
        return reference_log_likelihood(*inputs, spec).sum(0), torch.zeros_like(inputs.output)
    if backend == "reference":
        if counters is not None:
            inputs.count_invalid(spec, counters)
        with torch.enable_grad():
            leaf = inputs.output.requires_grad_()
            values = _reduce(reference_log_likelihood(leaf, *inputs[1:], spec), reduction)
            factors = weights_tensor(weights, spec, device, values.dtype).expand_as(values)
            (gradient,) = torch.autograd.grad(values, leaf, factors)
        return values.detach(), gradient
    table = code_table(spec, device)
    values, gradient = log_likelihood_op(
        *inputs, table.table, table.bounds, weights_tensor(weights, spec, device),
        make_counters(spec, device) if counters is None else counters, table.widest, reduction,
        backend,
    )  # fmt: skip
    return values, gradient
