"""The log-likelihood of each code under Q, log Q(c|x), and its gradient in the same launch.

    q_head_log_likelihood      differentiable, for any project
    likelihood_with_gradient   values and gradient at once, for an engine that has no autograd
    reference_log_likelihood   the definition, in plain torch

`heads.q_head_objective` computes Q's last layer as well. Everything is computed in fp32 at least.
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
    CodeTable,
    Entry,
    code_table,
    entries,
    row_of,
)
from fastinfogan_kernels.objective.likelihood_kernels import log_likelihood_kernel
from fastinfogan_kernels.objective.targets import (
    check_counters,
    check_weights,
    checked,
    count_problems,
    counters,
    weight_row,
)
from fastinfogan_kernels.runtime.backend import Implementation, choose
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import launch, run_native
from fastinfogan_kernels.runtime.machine import machine_of, power_of_two
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty, empty_like

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_TILE = 2048  # values of a program's tile: 16 registers a thread, for each thing kept of them


def reference_log_likelihood(
    output: Tensor, classes: Tensor, continuous: Tensor, spec: LatentSpec
) -> Tensor:
    """Each row's log Q(c|x) for each code, in plain torch; differentiable any number of times.

    Args:
        output: (B, output_width), Q's raw output, any floating dtype.
        classes: int64 (B, categorical codes).
        continuous: (B, continuous codes).
        spec: what stands where.

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
            # A factor, not a choice: the gradient must be NaN as well.
            factor = torch.where(known == label, 1.0, math.nan)
            values.append((F.log_softmax(logits, dim=1).gather(1, known) * factor)[:, 0])
        else:
            values.append(_gaussian(wide, continuous, entry))
    return torch.stack(values, dim=1) if values else wide.new_zeros(len(wide), 0)


def _gaussian(wide: Tensor, continuous: Tensor, entry: Entry) -> Tensor:
    raw = wide[:, entry.width]
    log_deviation = torch.zeros_like(raw)
    if entry.kind != UNIT_GAUSSIAN:
        log_deviation = raw if entry.low == -math.inf else raw.clamp(entry.low, entry.high)
    distance = (continuous[:, entry.index] - wide[:, entry.column]) * torch.exp(-log_deviation)
    return -0.5 * distance.square() - log_deviation - _HALF_LOG_2PI


def _reduced(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return rows
    return rows.mean(0) if reduction == "mean" else rows.sum(0)


def settle(impl: Implementation, of: Tensor) -> str:
    """Who computes: "auto" takes plain torch for fp64, which the kernels do not know.

    Raises:
        InputError: an implementation was asked for that cannot run on this tensor.
    """
    if of.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        if impl in ("auto", "reference"):
            return "reference"
        raise InputError(
            f"impl={impl!r} computes in fp32 from fp32, bf16 or fp16, not from {of.dtype}; "
            "use impl='reference'"
        )
    return choose(impl, of.device)


def _evaluate(
    output: Tensor, classes: Tensor, continuous: Tensor, table: Tensor, bounds: Tensor,
    weights: Tensor, counted: Tensor, widest: int, reduction: str, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (rows, width), codes = output.shape, table.shape[0]
    shape = (rows, codes) if reduction == "none" else (codes,)
    values = empty(shape, torch.float32, output.device)
    gradient = empty_like(output)
    tensors = (output, classes, continuous, table, bounds)
    if impl == "native":
        _natively(tensors, weights, counted, reduction, values, gradient)
        return values, gradient
    block_k = power_of_two(widest, 16, 1 << 16)
    block_m = max(1, min(_TILE // block_k, power_of_two(rows, 1, 128)))
    tiles = triton.cdiv(rows, block_m)
    merge = reduction != "none" and tiles > 1
    parts = empty((codes, tiles), torch.float32, values.device) if merge else None
    launch(
        log_likelihood_kernel,
        (tiles, codes + 1),
        *tensors,
        weights,
        values,
        gradient,
        parts,
        counted,
        rows,
        width,
        codes,
        classes.shape[1],
        continuous.shape[1],
        REDUCTION=REDUCTIONS.index(reduction),
        MERGE=merge,
        BLOCK_M=block_m,
        BLOCK_K=block_k,
        num_warps=4,
        **machine_of(output.device).limits,
        read=(*tensors, weights),
        written=(values, gradient),
    )
    return values, gradient


def _natively(
    tensors: tuple[Tensor, ...], weights: Tensor, counted: Tensor, reduction: str,
    values: Tensor, gradient: Tensor,
) -> None:  # fmt: skip
    rows, codes = tensors[0].shape[0], tensors[3].shape[0]
    scales = weights / rows if reduction == "mean" else weights
    means = empty(codes, torch.float32, values.device) if reduction == "none" else values
    each = values if reduction == "none" else None
    run_native("q_head_log_likelihood", *tensors, scales, each, means, gradient, counted[:2])
    if reduction == "sum":
        values *= rows


evaluate = register(
    "q_head_log_likelihood(Tensor output, Tensor classes, Tensor continuous, Tensor table, "
    "Tensor bounds, Tensor weights, Tensor(a!) counters, int widest, str reduction, str impl) "
    "-> (Tensor, Tensor)",
    _evaluate,
)
"""The operation: values, unweighted, and the gradient of weights * values; "native" or "triton"."""


class _LogLikelihood(torch.autograd.Function):
    """Forward computes the gradient too; backward multiplies it by the upstream one."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor, classes: Tensor, continuous: Tensor, table: Tensor, bounds: Tensor,
        owners: Tensor, weights: Tensor, counted: Tensor, widest: int, spec: LatentSpec,
        reduction: str, impl: str,
    ) -> Tensor:  # fmt: skip
        values: Tensor
        values, gradient = evaluate(
            output, classes, continuous, table, bounds, weights, counted, widest, reduction, impl
        )
        ctx.spec, ctx.reduction = spec, reduction
        ctx.save_for_backward(output, classes, continuous, owners, gradient)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        output, classes, continuous, owners, gradient = ctx.saved_tensors
        nothing = (None,) * 11
        if torch.is_grad_enabled():
            rows = reference_log_likelihood(output, classes, continuous, ctx.spec)
            values = _reduced(rows, ctx.reduction)
            (found,) = torch.autograd.grad(values, output, upstream, create_graph=True)
            return found, *nothing
        factor = upstream.index_select(-1, owners)
        return (gradient * factor).to(gradient.dtype), *nothing


def q_head_log_likelihood(
    output: Tensor,
    classes: Tensor,
    continuous: Tensor,
    spec: LatentSpec,
    *,
    weights: Sequence[float] | None = None,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    table: CodeTable | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """The log-likelihood of each code, differentiable by `output`.

    One launch forward, which leaves the gradient; backward is one multiplication by it. Double
    backward, fp64, and codes that require gradients go through plain torch.

    Args:
        output: (B, output_width), Q's raw output: fp32, bf16, fp16 or fp64.
        classes: integers (B, categorical codes).
        continuous: (B, continuous codes).
        spec: what stands where.
        weights: one number per code, by which its log-likelihood is multiplied.
        reduction: over the batch: "mean", "sum", or "none".
        counted: see `counters`; zeroed ones are made if None.
        table: the spec's on this device, from `code_table`, if it is at hand.
        impl: who computes.

    Returns:
        (codes,), or (B, codes) for "none", nats; fp32, or fp64 of fp64.

    Raises:
        InputError: shapes, dtypes or devices do not fit, or `impl` cannot run here.
    """
    targets = checked(output, classes, continuous, spec)
    weighted = None if weights is None else check_weights(weights, spec)
    chosen = settle(impl, output)
    device = output.device
    if counted is not None:
        check_counters(counted, 2 + len(spec.codes), device)
    if chosen == "reference" or continuous.requires_grad or not spec.codes:
        if counted is not None:
            count_problems(targets, spec, counted)
        values = _reduced(reference_log_likelihood(*targets, spec), reduction)
    else:
        table = code_table(spec, device) if table is None else table
        counted = counters(spec, device) if counted is None else counted
        values = _LogLikelihood.apply(  # type: ignore[no-untyped-call]
            *targets, table.table, table.bounds, table.owners, table.ones, counted,
            table.widest, spec, reduction, chosen,
        )  # fmt: skip
    return values if weighted is None else values * row_of(weighted, device, values.dtype)


def likelihood_with_gradient(
    output: Tensor,
    classes: Tensor,
    continuous: Tensor,
    spec: LatentSpec,
    *,
    weights: Sequence[float] | Tensor | None = None,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """The values of `q_head_log_likelihood` and their gradient, without autograd.

    Arguments and errors are its own, but for what `weights` do; they may lie on the device, too.

    Returns:
        Values, without weights; and the gradient of weights * values by the output, (B,
        output_width), in the output's dtype.
    """
    targets = checked(output.detach(), classes, continuous, spec)
    chosen, device = settle(impl, output), output.device
    if counted is not None:
        check_counters(counted, 2 + len(spec.codes), device)
    if not spec.codes:
        return reference_log_likelihood(*targets, spec).sum(0), torch.zeros_like(targets.output)
    if chosen == "reference":
        if counted is not None:
            count_problems(targets, spec, counted)
        with torch.enable_grad():
            leaf = targets.output.requires_grad_()
            values = _reduced(reference_log_likelihood(leaf, *targets[1:], spec), reduction)
            factors = weight_row(weights, spec, device, values.dtype).expand_as(values)
            (gradient,) = torch.autograd.grad(values, leaf, factors)
        return values.detach(), gradient
    table = code_table(spec, device)
    counted = counters(spec, device) if counted is None else counted
    values, gradient = evaluate(
        *targets, table.table, table.bounds, weight_row(weights, spec, device), counted,
        table.widest, reduction, chosen,
    )  # fmt: skip
    return values, gradient
