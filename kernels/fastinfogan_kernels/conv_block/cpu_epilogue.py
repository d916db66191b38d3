"""The epilogue around ATen's convolutions: batch norm and activation, forward and backward.

Forward makes two passes over the feature map: statistics, then act(scale * y + shift). Backward
makes two: the sums of g = dout * act'(z) and of g * (y - mean), then dy. It saves y and a few
numbers per channel, neither the normalized map nor g. Without batch norm it is one pass forward and
one backward, and only the result is saved.

Feature maps are (N, height, width, channels), contiguous; a row of features is a 1x1 map.
Statistics and all arithmetic are fp32, or fp64 for feature maps in fp64. native: C++, for CPU
tensors in fp32, bf16 and fp16. reference: plain torch, for all others.
"""

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block import sync_batch_norm
from fastinfogan_kernels.conv_block.deferred import ACTIVATIONS
from fastinfogan_kernels.runtime.backend import native_available
from fastinfogan_kernels.runtime.launch import run_native
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty, empty_like

NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _use_native(y: Tensor) -> bool:
    return y.device.type == "cpu" and y.dtype in NATIVE_DTYPES and native_available()


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _norm_activation(
    y: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor | None,
    running_var: Tensor | None, groups: int, momentum: float, eps: float, activation: str,
    slope: float, process_group: sync_batch_norm.ProcessGroup,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(y.dtype, torch.float32)
    out = empty_like(y)
    params = empty((4, groups, y.shape[3]), wide, y.device)
    scale, shift, mean, rstd = params.unbind()
    variance = empty_like(mean)
    if native := _use_native(y):
        run_native("norm_statistics", y.flatten(1, 2), groups, mean, rstd, variance, eps)
    else:
        values = _wide(y).view(groups, -1, y.shape[3])
        variance.copy_(values.var(1, unbiased=False))
        mean.copy_(values.mean(1))
        rstd.copy_(torch.rsqrt(variance + eps))
    count = y.numel() // variance.numel() * sync_batch_norm.world_size(process_group)
    if process_group is not None:
        sync_batch_norm.merge_statistics(mean, variance, process_group)
        rstd.copy_(torch.rsqrt(variance + eps))
    scale.copy_(rstd).mul_(gamma)
    shift.copy_(beta).addcmul_(mean, scale, value=-1.0)
    if running_mean is not None and running_var is not None:
        for group in range(groups):
            _update_running(running_mean, mean[group], momentum)
            _update_running(running_var, variance[group] * (count / (count - 1)), momentum)
    if native:
        number = ACTIVATIONS.index(activation)
        run_native("norm_apply", y.flatten(1, 2), scale, shift, number, slope, out.flatten(1, 2))
    else:
        out.copy_(_act(_affine(y, scale, shift), activation, slope))
    return out, params


def _norm_activation_gradient(
    dout: Tensor, y: Tensor, params: Tensor, gamma: Tensor, activation: str, slope: float,
    process_group: sync_batch_norm.ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dy = empty_like(y)
    dgamma, dbeta = (empty_like(gamma, dtype=params.dtype) for _ in range(2))
    if process_group is None and _use_native(y):
        run_native(
            "norm_gradient", dout.flatten(1, 2), y.flatten(1, 2), *params.unbind(), gamma.float(),
            ACTIVATIONS.index(activation), slope, dy.flatten(1, 2), dgamma, dbeta,
        )  # fmt: skip
    else:
        scale, shift, mean, rstd = params.unbind()
        groups, features = mean.shape
        out = _act(_affine(y, scale, shift), activation, slope)
        g = (_wide(dout) * _derivative(out, activation, slope)).view(groups, -1, features)
        normal = _affine(y, rstd, -mean * rstd).view(groups, -1, features)
        sum_g, sum_gn = g.sum(1), (g * normal).sum(1)
        dbeta.copy_(sum_g.sum(0))
        dgamma.copy_(sum_gn.sum(0))
        count = g.shape[1] * sync_batch_norm.world_size(process_group)
        if process_group is not None:
            sum_g, sum_gn = sync_batch_norm.all_reduce_sum(
                torch.stack([sum_g, sum_gn]), process_group
            )
        inner = g - (sum_g / count)[:, None] - normal * (sum_gn / count)[:, None]
        dy.copy_((inner * scale[:, None]).view(dy.shape))
    return dy, dgamma.to(gamma.dtype), dbeta.to(gamma.dtype)


@register("norm_activation", mutates_args=("running_mean", "running_var"))
def norm_activation(
    y: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor | None,
    running_var: Tensor | None, groups: int, momentum: float, eps: float, activation: str,
    slope: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return act(batch_norm(y)), and scale, shift, mean, rstd: (4, groups, C)."""
    return _norm_activation(
        y, gamma, beta, running_mean, running_var, groups, momentum, eps, activation, slope, None
    )


def sync_norm_activation(
    y: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor | None,
    running_var: Tensor | None, groups: int, momentum: float, eps: float, activation: str,
    slope: float, process_group: sync_batch_norm.ProcessGroup,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `norm_activation`, by all ranks' statistics; torch.compile stops here."""
    return _norm_activation(
        y, gamma, beta, running_mean, running_var, groups, momentum, eps, activation, slope,
        process_group,
    )  # fmt: skip


@register("norm_activation_gradient")
def norm_activation_gradient(
    dout: Tensor, y: Tensor, params: Tensor, gamma: Tensor, activation: str, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of y, gamma and beta."""
    return _norm_activation_gradient(dout, y, params, gamma, activation, slope, None)


def sync_norm_activation_gradient(
    dout: Tensor, y: Tensor, params: Tensor, gamma: Tensor, activation: str, slope: float,
    process_group: sync_batch_norm.ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `norm_activation_gradient`: dy by all ranks' statistics, dgamma and dbeta by this rank's.

    torch.compile stops here.
    """
    return _norm_activation_gradient(dout, y, params, gamma, activation, slope, process_group)


@register("activation_", mutates_args=("y",))
def activation_(y: Tensor, name: str, slope: float) -> None:
    """Write act(y) over y."""
    if _use_native(y):
        pixels, number = y.flatten(1, 2), ACTIVATIONS.index(name)
        run_native("norm_apply", pixels, None, None, number, slope, pixels)
    else:
        y.copy_(_act(_wide(y), name, slope))


@register("activation_gradient")
def activation_gradient(
    dout: Tensor, out: Tensor, name: str, slope: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of y and of the bias added to it; the latter is empty without a bias."""
    dy, number = empty_like(out), ACTIVATIONS.index(name)
    wide = torch.promote_types(out.dtype, torch.float32)
    dbias = empty(0 if bias is None else bias.shape[0], wide, out.device)
    if _use_native(out):
        run_native(
            "activation_gradient", dout.flatten(1, 2), out.flatten(1, 2), True, number, slope,
            dy.flatten(1, 2), None if bias is None else dbias,
        )  # fmt: skip
    else:
        g = _wide(dout) * _derivative(_wide(out), name, slope)
        dy.copy_(g)
        if bias is not None:
            dbias.copy_(g.flatten(0, 2).sum(0))
    return dy, dbias if bias is None else dbias.to(bias.dtype)


def _update_running(running: Tensor, batch: Tensor, momentum: float) -> None:
    """Move running statistics towards a batch's; a batch that is not finite does not move them."""
    step = (batch - running).mul_(momentum)
    running += step.nan_to_num_(0.0, 0.0, 0.0).to(running.dtype)


def _affine(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale * y + shift with parameters (groups, C), in the shape of y."""
    groups, features = scale.shape
    values = _wide(y).view(groups, -1, features)
    return torch.addcmul(shift[:, None], values, scale[:, None]).view(y.shape)


def _act(z: Tensor, name: str, slope: float) -> Tensor:
    if name == "sigmoid":
        return torch.sigmoid(z)
    if name == "tanh":
        return torch.tanh(z)
    return z if name == "none" else torch.where(z > 0.0, z, slope * z)


def _derivative(out: Tensor, name: str, slope: float) -> Tensor:
    """act'(z), from act(z)."""
    if name == "sigmoid":
        return out * (1.0 - out)
    if name == "tanh":
        return 1.0 - out * out
    if name == "none":
        return torch.ones_like(out)
    # Not torch.where of two numbers: that rounds the slope to fp32.
    return torch.full_like(out, slope).masked_fill_(out > 0.0, 1.0)
