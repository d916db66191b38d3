"""Q's last layer, the log-likelihood of every code, and the gradients, in one launch.

The layer reads the raw rows y of the previous block and forms act(scale * y + shift) while loading.
It writes what backward needs: the gradients by its output and by its bias. `likelihood` has the
formulas.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block import ops
from fastinfogan_kernels.conv_block.deferred import Deferred, leaky_relu
from fastinfogan_kernels.conv_block.layers import LINEAR
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.latents import LatentSpec
from fastinfogan_kernels.objective.code_layout import (
    check_codes,
    check_counters,
    code_table,
    make_counters,
    weights_tensor,
)
from fastinfogan_kernels.objective.last_layer import check_last_layer, linear, materialize_rows
from fastinfogan_kernels.objective.likelihood import (
    categorical_log_likelihood,
    count_true,
    gaussian_log_likelihood,
    likelihood_with_gradient,
    log_likelihood_op,
    resolve_backend,
)
from fastinfogan_kernels.runtime.arrival_counters import is_last, sum_rows
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import Implementation, launch
from fastinfogan_kernels.runtime.machine import machine_of, power_of_two, precision
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty

WIDEST = 256
"""Columns of Q's output up to which its last layer and the likelihood are one kernel."""
LINEAR_WINDOW = LINEAR.window.as_list


@triton.jit
def q_head_kernel(
    y_ptr,  # (ROWS, DEPTH): the previous block's raw output
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
    partials_ptr,  # fp32 (row tiles, WIDTH + CODES), scratch
    counters_ptr,  # int32 (3): invalid classes, non-finite rows, arrival counter
    ROWS, DEPTH, WIDTH, CODES, CATEGORICAL, CONTINUOUS, FEATURES, W_IN, W_OUT,
    NORM: tl.constexpr, SLOPE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute Q's last layer, output = act(scale * y + shift) W^T + bias, and its likelihood.

    Grid: (row tiles,). The output stays in registers, unrounded. BLOCK_N holds a whole row of it,
    BLOCK_C all codes.
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
        v = leaky_relu(v, SLOPE)
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
    count_true(counters_ptr + 1, tl.max(bad, axis=1))

    partials = partials_ptr + tile * (WIDTH + CODES)
    gradient = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for code in range(CODES):
        entry = table_ptr + code * 4
        kind, first = tl.load(entry), tl.load(entry + 1)
        width, index = tl.load(entry + 2), tl.load(entry + 3)
        weight = tl.load(weights_ptr + code) / ROWS
        if kind == 0:
            in_code = (n >= first) & (n < first + width)
            label = tl.load(
                classes_ptr + row.to(tl.int64) * CATEGORICAL + index, mask=row_ok, other=0
            )
            logits = tl.where(in_code[None, :], acc, float("-inf"))
            value, slope, known = categorical_log_likelihood(logits, n - first, label, width)
            gradient = tl.where(in_code[None, :], weight * slope, gradient)
            count_true(counters_ptr, row_ok & (known == 0))
        else:
            is_mean, is_raw = (n == first)[None, :], (n == width)[None, :]
            mean = tl.sum(tl.where(is_mean, acc, 0.0), axis=1)
            raw = tl.sum(tl.where(is_raw, acc, 0.0), axis=1)
            c = tl.load(
                continuous_ptr + row.to(tl.int64) * CONTINUOUS + index, mask=row_ok, other=0.0
            )
            low, high = tl.load(bounds_ptr + code * 2), tl.load(bounds_ptr + code * 2 + 1)
            value, by_mean, by_raw = gaussian_log_likelihood(mean, raw, c, low, high, kind)
            gradient = tl.where(is_mean, (weight * by_mean)[:, None], gradient)
            gradient = tl.where(is_raw, (weight * by_raw)[:, None], gradient)
        tl.store(partials + WIDTH + code, tl.sum(tl.where(row_ok, value, 0.0), axis=0))
    tl.store(gradient_ptr + at, gradient.to(gradient_ptr.dtype.element_ty), mask=ok)
    tl.store(partials + n, tl.sum(tl.where(ok, gradient, 0.0), axis=0), mask=n_ok)
    if is_last(counters_ptr + 2, tiles):
        total = sum_rows(partials_ptr, n, n_ok, tiles, WIDTH + CODES, 8)
        tl.store(bias_gradient_ptr + n, total, mask=n_ok)
        c0 = tl.arange(0, BLOCK_C)
        c_ok = c0 < CODES
        total = sum_rows(partials_ptr + WIDTH, c0, c_ok, tiles, WIDTH + CODES, 8)
        tl.store(values_ptr + c0, total / ROWS, mask=c_ok)


@register("q_head_objective", mutates_args=("counters",))
def q_head_op(
    y: Tensor, params: Tensor | None, slope: float, weight: Tensor, bias: Tensor | None,
    classes: Tensor, continuous: Tensor, table: Tensor, bounds: Tensor, weights: Tensor,
    counters: Tensor, widest: int, with_output: bool, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return output (empty without `with_output`), values, gradient and bias gradient.

    "native" is ATen's product and the likelihood in C++; or "triton".
    """
    (rows, depth), (width, _), codes = y.shape, weight.shape, table.shape[0]
    if impl == "native":
        output = linear(materialize_rows(Deferred(y, params, slope)), weight, bias)
        values, gradient = log_likelihood_op(
            output, classes, continuous, table, bounds, weights, counters, widest, "mean", impl
        )
        bias_gradient = gradient.sum(0, dtype=torch.float32)
        output = output if with_output else empty(0, y.dtype, y.device)
        return output, values, gradient, bias_gradient
    output = empty((rows, width) if with_output else 0, y.dtype, y.device)
    gradient = empty((rows, width), y.dtype, y.device)
    values, bias_gradient = (empty(n, torch.float32, y.device) for n in (codes, width))
    n = power_of_two(width, 16, WIDEST)
    m = 16 if n > 32 else 32
    # Three steps of the weight in flight fit into the least shared memory of the targets.
    step = 16384 // (n * max(weight.element_size(), y.element_size()))
    wide = y.element_size() > 2
    k = power_of_two(depth, 16, 16 if wide else max(16, min(64, step)))
    tiles = triton.cdiv(rows, m)
    tensors = (y, params, weight, bias, classes, continuous, table, bounds, weights)
    launch(
        q_head_kernel,
        (tiles,),
        *tensors,
        output if with_output else None,
        values,
        gradient,
        bias_gradient,
        empty((tiles, width + codes), torch.float32, y.device),
        counters,
        rows,
        depth,
        width,
        codes,
        classes.shape[1],
        continuous.shape[1],
        depth if params is None else params.shape[2],
        weight.stride(1),
        weight.stride(0),
        NORM=params is not None,
        SLOPE=float(slope),
        HAS_BIAS=bias is not None,
        HAS_OUTPUT=with_output,
        PRECISION=precision(y.dtype),
        BLOCK_M=m,
        BLOCK_N=n,
        BLOCK_K=k,
        BLOCK_C=power_of_two(codes, 1, WIDEST),
        num_warps=8 if wide and n >= 64 else 4,
        num_stages=3,
        **machine_of(y.device).limits,
        read=tensors,
        written=(output, values, gradient, bias_gradient),
    )
    return output, values, gradient, bias_gradient


class QHeadResult(NamedTuple):
    """The results of Q's last layer.

    Attributes:
        output: Q's raw output; (B, output_width) in y's dtype, or None without `with_output`.
        values: mean log-likelihoods, unweighted; (codes,), nats.
        gradient: of the weighted sum of the values by the output; (B, output_width), y's dtype.
        bias_gradient: of the same by the bias; (output_width,), fp32, or fp64 of fp64.
    """

    output: Tensor | None
    values: Tensor
    gradient: Tensor
    bias_gradient: Tensor


def q_head_objective(
    y: Deferred,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    continuous: Tensor,
    spec: LatentSpec,
    *,
    weights: Sequence[float] | Tensor | None = None,
    counters: Tensor | None = None,
    with_output: bool = False,
    impl: Implementation = "auto",
) -> QHeadResult:
    """Compute Q's last layer, the mean log-likelihood of every code, and their gradients.

    Not differentiable. Triton does it in one launch if Q's output has at most `WIDEST` columns;
    otherwise, and on CPU tensors, it is a product and the likelihood.

    Args:
        y: the previous block's rows; (B, K), one statistics group.
        weight: (output_width, K), any dtype and strides.
        bias: (output_width,) or None.
        classes: int64 (B, categorical codes).
        continuous: fp32 (B, continuous codes).
        spec: the layout of the codes.
        weights: one number per code, by which its part of the gradients is multiplied; a tensor is
            fp32 (codes,) on the device.
        counters: see `make_counters`; temporary ones if None.
        with_output: return Q's raw output as well.
        impl: the backend.

    Raises:
        InputError: shapes or devices do not fit, or `impl` cannot run here.
    """
    check_last_layer("Q", y, weight, bias)
    if len(weight) != spec.output_width:
        raise InputError(
            f"Q's last layer has {len(weight)} outputs, the codes need {spec.output_width}"
        )
    check_codes(len(y.x), classes, continuous, spec)
    if y.params is not None and y.params.shape[0] != 1:
        raise InputError(f"Q's head needs one statistics group, not {y.params.shape[0]}")
    backend, device = resolve_backend(impl, y.x), y.x.device
    if spec.codes and (backend == "native" or (backend == "triton" and len(weight) <= WIDEST)):
        if counters is not None:
            check_counters(counters, 3, device)
        table = code_table(spec, device)
        output, *found = q_head_op(
            y.x, y.params, y.slope, weight, bias, classes.long().contiguous(),
            continuous.float().contiguous(), table.table, table.bounds,
            weights_tensor(weights, spec, device),
            make_counters(spec, device) if counters is None else counters, table.widest,
            with_output, backend,
        )  # fmt: skip
        return QHeadResult(output if with_output else None, *found)
    if backend == "triton":
        output = ops.plain_block(
            y.x[:, None, None], y.params, y.slope, weight, bias, LINEAR_WINDOW, False, 1, "none",
            1.0,
        )[:, 0, 0]  # fmt: skip
    else:
        output = linear(materialize_rows(y), weight, bias)
    values, gradient = likelihood_with_gradient(
        output, classes, continuous, spec, weights=weights, counters=counters, impl=impl
    )
    bias_gradient = gradient.sum(0, dtype=values.dtype)
    return QHeadResult(output if with_output else None, values, gradient, bias_gradient)
