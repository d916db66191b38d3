"""The two losses of D, and G's, from logits, with their gradient in the same launch.

    adversarial_losses        differentiable
    losses_with_gradient      losses and gradient at once, for an engine that has no autograd

`heads.d_head_objective` computes D's last layer as well. Everything is computed in fp32 at least.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.objective.adversarial_kernels import adversarial_kernel
from fastinfogan_kernels.objective.code_layout import row_of
from fastinfogan_kernels.objective.likelihood import settle
from fastinfogan_kernels.objective.targets import check_counters
from fastinfogan_kernels.runtime.backend import Implementation
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import launch, run_native
from fastinfogan_kernels.runtime.machine import power_of_two
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty, empty_like


def reference_losses(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """The definition, in plain torch; differentiable any number of times.

    Args:
        logits: any shape, any floating dtype; rows in as many equal groups as there are targets.
        targets: of each group, 1 for "should be called real", 0 for "generated".

    Returns:
        (groups,), nats, in fp32 or the logits' dtype if that is wider: means of softplus(-logit)
        for 1, -log D, and of softplus(logit) for 0, -log(1 - D).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    groups = wide.reshape(len(targets), -1)
    signs = row_of([-1.0 if real else 1.0 for real in targets], wide.device, wide.dtype)
    return F.softplus(groups * signs[:, None]).mean(1)


def check_groups(rows: int, targets: Sequence[int]) -> None:
    """Check that rows can be cut into as many groups as there are targets.

    Raises:
        InputError: they cannot, or a target is neither 0 nor 1.
    """
    if not targets or any(target not in (0, 1) for target in targets):
        raise InputError(
            f"targets say 1 (real) or 0 (generated) for each group of rows, not {list(targets)}"
        )
    if rows == 0 or rows % len(targets):
        raise InputError(f"{rows} logits cannot be cut into {len(targets)} equal groups")


def _evaluate(
    logits: Tensor, targets: Tensor, scale: float, counted: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    groups = targets.shape[0]
    rows = logits.numel() // groups
    losses = empty(groups, torch.float32, logits.device)
    gradient = empty_like(logits)
    if impl == "native":
        flat = (logits.view(-1), targets, scale, losses, gradient.view(-1), counted[:1])
        run_native("adversarial_losses", *flat)
        return losses, gradient
    block = power_of_two(rows, 16, 1024)
    tiles = triton.cdiv(rows, block)
    launch(
        adversarial_kernel,
        (tiles, groups),
        logits,
        targets,
        losses,
        gradient,
        empty((groups, tiles), torch.float32, losses.device),
        counted,
        rows,
        groups,
        float(scale),
        BLOCK_M=block,
        num_warps=4,
        read=(logits, targets),
        written=(losses, gradient),
    )
    return losses, gradient


evaluate = register(
    "adversarial_losses(Tensor logits, Tensor targets, float scale, Tensor(a!) counters, str impl) "
    "-> (Tensor, Tensor)",
    _evaluate,
)
"""The operation: losses, and the gradient of scale * their sum; "native" or "triton"."""


class _Losses(torch.autograd.Function):
    """Forward computes the gradient too; backward multiplies it by the upstream one."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor, on_device: Tensor, counted: Tensor, targets: tuple[int, ...], impl: str,
    ) -> Tensor:  # fmt: skip
        losses: Tensor
        losses, gradient = evaluate(logits, on_device, 1.0, counted, impl)
        ctx.targets = targets
        ctx.save_for_backward(logits, gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, gradient = ctx.saved_tensors
        nothing = (None,) * 4
        if torch.is_grad_enabled():
            losses = reference_losses(logits, ctx.targets)
            (found,) = torch.autograd.grad(losses, logits, upstream, create_graph=True)
            return found, *nothing
        groups = gradient.view(len(ctx.targets), -1)
        return (groups * upstream[:, None]).to(gradient.dtype).view(gradient.shape), *nothing


def adversarial_losses(
    logits: Tensor,
    targets: Sequence[int],
    *,
    counted: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """D's losses of groups of rows, differentiable by the logits.

    One launch forward, which leaves the gradient; backward is one multiplication by it. Double
    backward and fp64 go through plain torch.

    Args:
        logits: any shape: fp32, bf16, fp16 or fp64; rows in as many equal groups as targets.
        targets: of each group, 1 for "should be called real", 0 for "generated".
        counted: int32 (2,), zeroed once: rows whose logit is a NaN or an infinity, added to; and
            the kernel's own ticket. Made if None.
        impl: who computes; "auto" is plain torch for CPU tensors.

    Returns:
        (groups,), nats, means over a group: softplus(-logit) for 1, softplus(logit) for 0; fp32, or
        fp64 of fp64.

    Raises:
        InputError: shapes, dtypes or devices do not fit, or `impl` cannot run here.
    """
    targets = _checked(logits, targets, counted)
    chosen = settle(impl, logits)
    if impl == "auto" and logits.device.type == "cpu":
        chosen = "reference"  # a node of our own costs more than the three operations it replaces
    if chosen == "reference":
        if counted is not None:
            counted[:1] += (~logits.isfinite()).sum().to(torch.int32)
        return reference_losses(logits, targets)
    on_device = row_of(targets, logits.device, torch.int32)
    counted = logits.new_zeros(2, dtype=torch.int32) if counted is None else counted
    losses: Tensor = _Losses.apply(logits.contiguous(), on_device, counted, targets, chosen)  # type: ignore[no-untyped-call]
    return losses


def losses_with_gradient(
    logits: Tensor,
    targets: Sequence[int],
    scale: float = 1.0,
    *,
    counted: Tensor | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """The losses of `adversarial_losses`, and their gradient, without autograd.

    Arguments and errors are its own. `scale` multiplies the gradient and not the losses.

    Returns:
        Losses (groups,); and scale times their sum's gradient, of the logits' shape and dtype.
    """
    targets = _checked(logits, targets, counted)
    chosen = settle(impl, logits)
    if chosen == "reference":
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses = adversarial_losses(leaf, targets, counted=counted, impl="reference")
            (gradient,) = torch.autograd.grad(losses.sum() * scale, leaf)
        return losses.detach(), gradient
    on_device = row_of(targets, logits.device, torch.int32)
    counted = logits.new_zeros(2, dtype=torch.int32) if counted is None else counted
    losses, gradient = evaluate(logits.detach().contiguous(), on_device, scale, counted, chosen)
    return losses, gradient


def _checked(logits: Tensor, targets: Sequence[int], counted: Tensor | None) -> tuple[int, ...]:
    if not logits.is_floating_point():
        raise InputError(f"logits must be floating point, not {logits.dtype}")
    check_groups(logits.numel(), targets)
    if counted is not None:
        check_counters(counted, 2, logits.device)
    return tuple(map(int, targets))
