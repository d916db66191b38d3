"""The last layers of the two heads, each with its objective and its gradients in one launch.

They read the block before as it is deferred: its raw rows y, formed while loading. What they leave
is what backward needs: the gradient by their output, which the operations `weight_gradient` and
`data_gradient` of `chain` take as it is, and that by their bias.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.conv_block import ops
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.geometry import LINEAR
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.latents import LatentSpec
from fastinfogan_kernels.objective import adversarial, likelihood
from fastinfogan_kernels.objective.adversarial import check_groups, losses_with_gradient
from fastinfogan_kernels.objective.adversarial_kernels import d_head_kernel
from fastinfogan_kernels.objective.code_layout import code_table, row_of
from fastinfogan_kernels.objective.likelihood import likelihood_with_gradient, settle
from fastinfogan_kernels.objective.likelihood_kernels import q_head_kernel
from fastinfogan_kernels.objective.targets import (
    check_counters,
    check_targets,
    counters,
    weight_row,
)
from fastinfogan_kernels.runtime.backend import Implementation
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import Launch, is_recording, launch, recording, run_native
from fastinfogan_kernels.runtime.machine import machine_of, power_of_two, precision
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty

WIDEST = 256
"""Columns of Q's output up to which its last layer and the likelihood are one kernel."""
LINEAR_WINDOW = ops.Layer(LINEAR, norm=False).window


class QHead(NamedTuple):
    """What Q's last layer leaves.

    Attributes:
        output: (B, output_width), Q's raw output in y's dtype, or None if it was not wanted.
        values: (codes,), mean log-likelihoods in nats, without weights.
        gradient: (B, output_width), of the weighted sum of the values by the output, y's dtype.
        bias_gradient: (output_width,), of the same by the bias; fp32, or fp64 of fp64.
    """

    output: Tensor | None
    values: Tensor
    gradient: Tensor
    bias_gradient: Tensor


class DHead(NamedTuple):
    """What D's last layer leaves.

    Attributes:
        logits: (R,), fp32, or fp64 of fp64.
        losses: (groups,), nats, means over a group.
        gradient: (R,), of scale times the losses' sum by the logits, y's dtype.
        bias_gradient: (1,), of the same by the bias; fp32, or fp64 of fp64.
    """

    logits: Tensor
    losses: Tensor
    gradient: Tensor
    bias_gradient: Tensor


def _activated(y: Deferred) -> Tensor:
    """The rows that a deferred map of rows stands for, in plain torch."""
    if y.params is None and y.slope == 1.0:
        return y.x
    wide = y.x.to(torch.promote_types(y.x.dtype, torch.float32))
    if y.params is not None:
        groups, _, features = y.params.shape
        parts = wide.view(groups, -1, features)
        wide = (parts * y.params[:, 0, None] + y.params[:, 1, None]).view(y.x.shape)
    return (F.leaky_relu(wide, y.slope) if y.slope != 1.0 else wide).to(y.x.dtype)


def _multiplied(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A fully connected layer in the rows' dtype, in plain torch."""
    return F.linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))


def _q_head(
    y: Tensor, params: Tensor | None, slope: float, weight: Tensor, bias: Tensor | None,
    classes: Tensor, continuous: Tensor, table: Tensor, bounds: Tensor, weights: Tensor,
    counted: Tensor, widest: int, with_output: bool, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (rows, depth), (width, _), codes = y.shape, weight.shape, table.shape[0]
    if impl == "native":
        output = _multiplied(_activated(Deferred(y, params, slope)), weight, bias)
        values, gradient = likelihood.evaluate(
            output, classes, continuous, table, bounds, weights, counted, widest, "mean", impl
        )
        sums = gradient.sum(0, dtype=torch.float32)
        return output if with_output else empty(0, y.dtype, y.device), values, gradient, sums
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
        counted,
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


fused_q_head = register(
    "q_head_objective(Tensor y, Tensor? params, float slope, Tensor weight, Tensor? bias, "
    "Tensor classes, Tensor continuous, Tensor table, Tensor bounds, Tensor weights, "
    "Tensor(a!) counters, int widest, bool with_output, str impl) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _q_head,
)
"""The operation: output (empty if not wanted), values, gradient, bias gradient; "native", which is
ATen's product and the likelihood in C++, or "triton"."""


def q_head_objective(
    y: Deferred,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    continuous: Tensor,
    spec: LatentSpec,
    *,
    weights: Sequence[float] | Tensor | None = None,
    counted: Tensor | None = None,
    with_output: bool = False,
    impl: Implementation = "auto",
) -> QHead:
    """Q's last layer, the mean log-likelihood of every code, and the gradients.

    By Triton one launch if Q's output has at most `WIDEST` columns: nothing between the layers is
    written or read again. Otherwise, and on CPU tensors, a product and the likelihood. No autograd.

    Args:
        y: rows (B, K) of the block before, and how they are formed; one statistics group.
        weight: (output_width, K), any dtype and strides.
        bias: (output_width,) or None.
        classes: int64 (B, categorical codes).
        continuous: fp32 (B, continuous codes).
        spec: what stands where.
        weights: one number per code, by which its part of the gradients is multiplied; or as fp32
            (codes,) on the device.
        counted: see `targets.counters`; made if None.
        with_output: whether Q's raw output is wanted as well.
        impl: who computes.

    Raises:
        InputError: shapes or devices do not fit, or `impl` cannot run here.
    """
    _check_layer(y, weight, bias, spec.output_width, "Q's")
    check_targets(len(y.x), classes, continuous, spec)
    if y.params is not None and y.params.shape[0] != 1:
        raise InputError(f"Q's head reads one statistics group, not {y.params.shape[0]}")
    chosen = settle(impl, y.x)
    if spec.codes and (chosen == "native" or (chosen == "triton" and len(weight) <= WIDEST)):
        device = y.x.device
        if counted is not None:
            check_counters(counted, 3, device)
        table = code_table(spec, device)
        output, values, gradient, bias_gradient = fused_q_head(
            y.x, y.params, y.slope, weight, bias, classes.long().contiguous(),
            continuous.float().contiguous(), table.table, table.bounds,
            weight_row(weights, spec, device),
            counters(spec, device) if counted is None else counted, table.widest, with_output,
            chosen,
        )  # fmt: skip
        return QHead(output if with_output else None, values, gradient, bias_gradient)
    if chosen == "triton":
        rows = y.x[:, None, None]
        output = ops.plain_block(
            rows, y.params, y.slope, weight, bias, LINEAR_WINDOW, False, 1, "none", 1.0
        )[:, 0, 0]
    else:
        rows = _activated(y)
        output = F.linear(
            rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype)
        )
    values, gradient = likelihood_with_gradient(
        output, classes, continuous, spec, weights=weights, counted=counted, impl=impl
    )
    return QHead(
        output if with_output else None, values, gradient, gradient.sum(0, dtype=values.dtype)
    )


def _check_layer(y: Deferred, weight: Tensor, bias: Tensor | None, width: int, whose: str) -> None:
    if y.x.dim() != 2 or weight.dim() != 2 or weight.shape != (width, y.x.shape[1]):
        raise InputError(
            f"{whose} last layer needs rows (B, K) and a weight ({width}, K), not "
            f"{tuple(y.x.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (width,):
        raise InputError(f"{whose} last bias must be ({width},), not {tuple(bias.shape)}")
    if not y.x.is_contiguous():
        raise InputError(f"{whose} last layer reads rows that are contiguous")
    for each in (weight, bias, y.params):
        if each is not None and each.device != y.x.device:
            raise InputError(f"{whose} last layer is on {each.device}, its rows on {y.x.device}")


def _d_head(
    y: Tensor, params: Tensor | None, slope: float, weight: Tensor, bias: Tensor | None,
    targets: Tensor, scale: float, scale_there: Tensor | None, counted: Tensor, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (all_rows, depth), groups = y.shape, targets.shape[0]
    rows = all_rows // groups
    logits, losses, bias_gradient = (
        empty(n, torch.float32, y.device) for n in (all_rows, groups, 1)
    )
    if impl == "native":
        exact = empty(all_rows, torch.float32, y.device)
        if scale_there is not None and not is_recording():
            scale = scale_there.item()
        run_native(
            "d_head_objective", _activated(Deferred(y, params, slope)), weight.reshape(depth),
            None if bias is None else bias.float(), targets, scale, logits, losses, exact,
            counted[:1],
        )  # fmt: skip
        return logits, losses, exact.to(y.dtype), exact.sum(0, keepdim=True)
    gradient = empty(all_rows, y.dtype, y.device)
    m, k = 4, power_of_two(depth, 16, 512)
    tiles = triton.cdiv(rows, m)
    tensors = (y, params, weight, bias, targets)
    on_device = scale_there is not None
    launch(
        d_head_kernel,
        (tiles, groups),
        *tensors,
        logits,
        losses,
        gradient,
        bias_gradient,
        empty((2, groups, tiles), torch.float32, y.device),
        counted,
        rows,
        depth,
        groups,
        depth if params is None else params.shape[2],
        scale_there if on_device else float(scale),
        NORM=params is not None,
        SLOPE=float(slope),
        HAS_BIAS=bias is not None,
        SCALE_ON_DEVICE=on_device,
        BLOCK_M=m,
        BLOCK_K=k,
        num_warps=4,
        **machine_of(y.device).limits,
        read=tensors,
        written=(logits, losses, gradient, bias_gradient),
    )
    return logits, losses, gradient, bias_gradient


fused_d_head = register(
    "d_head_objective(Tensor y, Tensor? params, float slope, Tensor weight, Tensor? bias, "
    "Tensor targets, float scale, Tensor? scale_there, Tensor(a!) counters, str impl) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _d_head,
)
"""The operation: logits, losses, gradient, bias gradient; "native" or "triton"."""


def d_head_objective(
    y: Deferred,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[int],
    scale: float | Tensor = 1.0,
    *,
    counted: Tensor | None = None,
    impl: Implementation = "auto",
) -> DHead:
    """D's last layer, the losses of its logits, and the gradients. One launch; no autograd.

    Args:
        y: rows (R, K) of the block before, and how they are formed, in as many statistics groups
            as there are targets.
        weight: (1, K), any dtype.
        bias: (1,) or None.
        targets: of each group of rows, 1 for "should be called real", 0 for "generated".
        scale: multiplies the gradients; a number, or fp32 (1,) on the device.
        counted: see `adversarial_losses`; made if None.
        impl: who computes.

    Raises:
        InputError: shapes or devices do not fit, or `impl` cannot run here.
    """
    _check_layer(y, weight, bias, 1, "D's")
    check_groups(len(y.x), targets)
    if y.params is not None and y.params.shape[0] != len(targets):
        raise InputError(
            f"D's head has {len(targets)} targets for {y.params.shape[0]} statistics groups"
        )
    device, chosen = y.x.device, settle(impl, y.x)
    if counted is not None:
        check_counters(counted, 2, device)
    if chosen == "reference":
        rows = _activated(y)
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        logits = F.linear(
            wide, weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype)
        )
        losses, gradient = losses_with_gradient(
            logits[:, 0], targets, float(scale), counted=counted, impl=impl
        )
        return DHead(logits[:, 0], losses, gradient.to(rows.dtype), gradient.sum(0, keepdim=True))
    found = fused_d_head(
        y.x, y.params, y.slope, weight.contiguous(), bias,
        row_of([int(target) for target in targets], device, torch.int32),
        1.0 if isinstance(scale, Tensor) else scale, scale if isinstance(scale, Tensor) else None,
        y.x.new_zeros(2, dtype=torch.int32) if counted is None else counted, chosen,
    )  # fmt: skip
    return DHead(*found)


def objective_launches(
    spec: LatentSpec, dtype: torch.dtype, batch: int, depths: tuple[int, int] = (128, 1024)
) -> list[Launch]:
    """The objective's launches, without running them, for `inspect` and for counting.

    Args:
        spec: the codes.
        dtype: of rows and outputs; weights are fp32.
        batch: images in a step; D reads twice as many in its own.
        depths: features that the last layers of Q and of D read.

    Returns:
        Of Q: the likelihood, and if it fits the last layer with it. Of D: the losses, and the last
        layer with them, of D's step and of G's.
    """
    meta = torch.device("meta")

    def empty(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=of, device=meta)

    n, width = len(spec.codes), spec.output_width
    of_q, of_d = depths
    table = code_table(spec, meta)
    codes = (
        empty(batch, len(spec.categorical), of=torch.int64),
        empty(batch, len(spec.continuous)),
        table.table,
        table.bounds,
        empty(n),
        counters(spec, meta),
    )
    with recording() as launches:
        for reduction in likelihood.REDUCTIONS:
            likelihood.evaluate(
                empty(batch, width, of=dtype), *codes, table.widest, reduction, "triton"
            )
        if width <= WIDEST:
            fused_q_head(
                empty(batch, of_q, of=dtype), empty(1, 3, of_q), 0.1, empty(width, of_q),
                empty(width), *codes, table.widest, False, "triton",
            )  # fmt: skip
        scale_there = empty(1) if dtype == torch.float16 else None  # fp16's losses are scaled
        for groups in (2, 1):
            rows, targets = groups * batch, empty(groups, of=torch.int32)
            counted = empty(2, of=torch.int32)
            adversarial.evaluate(empty(rows, of=dtype), targets, 1.0, counted, "triton")
            fused_d_head(
                empty(rows, of_d, of=dtype), empty(groups, 3, of_d), 0.1, empty(1, of_d),
                empty(1), targets, 1.0, scale_there, counted, "triton",
            )  # fmt: skip
    return launches
