"""Forward and backward pass of a chain by ATen's convolutions and fused epilogues.

The backend of CPU tensors, as `triton_backend` is of CUDA tensors; `autograd` makes one node of
either. Each block saves its input, its y if batch norm follows, and batch norm's params.

An epilogue is batch norm and activation. Forward it makes two passes over the feature map:
statistics, then act(scale * y + shift). Backward it makes two: the sums of g = dout * act'(z) and
of g * (y - mean), then dy. It saves y and a few numbers per channel, neither the normalized map nor
g. Without batch norm it is one pass forward and one backward, and only the result is saved.

Feature maps are (N, height, width, channels), contiguous; a row of features is a 1x1 map.
Statistics and all arithmetic are fp32, or fp64 for feature maps in fp64. native: C++, for CPU
tensors in fp32, bf16 and fp16. reference: plain torch, for all others.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block import sync_batch_norm
from fastinfogan_kernels.conv_block.deferred import ACTIVATIONS, Deferred
from fastinfogan_kernels.conv_block.layers import (
    ChainInput,
    Layer,
    LayerTensors,
    aten_convolution,
    aten_gradients,
)
from fastinfogan_kernels.runtime.launch import KERNEL_DTYPES, native_available, run_native
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty, empty_like, zeros_like


def _use_native(y: Tensor) -> bool:
    return y.device.type == "cpu" and y.dtype in KERNEL_DTYPES and native_available()


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
    count = y.numel() // variance.numel()
    if process_group is not None:
        count *= sync_batch_norm.world_size(process_group)
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
        count = g.shape[1]
        if process_group is not None:
            count *= sync_batch_norm.world_size(process_group)
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
    """Compute `norm_activation` by all ranks' statistics; torch.compile stops here."""
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
    """Compute dy by all ranks' statistics, dgamma and dbeta by this rank's.

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
    """Compute act'(z) from act(z)."""
    if name == "sigmoid":
        return out * (1.0 - out)
    if name == "tanh":
        return 1.0 - out * out
    if name == "none":
        return torch.ones_like(out)
    # Not torch.where of two numbers: that rounds the slope to fp32.
    return torch.full_like(out, slope).masked_fill_(out > 0.0, 1.0)


_SAVED = 3
"""Tensors saved by each layer: its input; y, or without batch norm the result; and the params."""


def _activates(layer: Layer) -> bool:
    """Return whether the layer's activation changes anything."""
    return layer.activation in ("sigmoid", "tanh") or layer.loaded_slope != 1.0


def _norm(chain_input: ChainInput) -> Any:
    """Apply batch norm and activation, with the process group's statistics if there is one."""
    group = chain_input.process_group
    if group is None:
        return norm_activation
    return partial(sync_norm_activation, process_group=group)


def _norm_gradient(chain_input: ChainInput) -> Any:
    """Compute the gradient of `_norm`."""
    group = chain_input.process_group
    if group is None:
        return norm_activation_gradient
    return partial(sync_norm_activation_gradient, process_group=group)


def forward(
    x: Tensor,
    chain_input: ChainInput,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> tuple[Tensor, list[Tensor | None]]:
    """Compute `triton_backend.forward` for feature maps, on any device, in any floating dtype."""
    saved: list[Tensor | None] = []
    for layer, t in zip(layers, tensors, strict=True):
        x = x.flatten(1)[:, None, None] if layer.flat else x
        y = aten_convolution(x, t.weight, t.bias, layer.geometry)
        if layer.norm:
            out, params = _norm(chain_input)(
                y, *t[2:], groups, layer.momentum, layer.eps, layer.activation, layer.loaded_slope
            )
            saved += [x, y, params]
        else:
            if _activates(layer):
                activation_(y, layer.activation, layer.slope)
            out = y
            saved += [x, out, None]
        x = out if layer.shape is None else out.view(-1, *layer.shape)
    return x, saved


def forward_deferred(
    x: Tensor,
    chain_input: ChainInput,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> tuple[Deferred, list[Tensor | None]]:
    """Compute `triton_backend.forward_deferred`; the values are written out."""
    out, saved = forward(x, chain_input, layers, tensors, groups)
    rows = out.flatten(1)
    return Deferred(rows), [*saved, rows[:, None, None]]


def saved_of_head(saved: list[Tensor | None], gradient: Tensor) -> list[Tensor | None]:
    """Return what `triton_backend.saved_of_head` does."""
    return [*saved, gradient, None]


def backward(
    x: Tensor,
    chain_input: ChainInput,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
    saved: Sequence[Tensor | None],
    dout: Tensor,
    needs_grad: Sequence[Sequence[bool]],
    *,
    input_gradient: bool,
    bias_gradient: Tensor | None = None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Compute `triton_backend.backward`."""
    gradients: list[Tensor | None] = []
    for i in range(len(layers) - 1, -1, -1):
        layer, t = layers[i], tensors[i]
        needs = LayerTensors(*needs_grad[i])  # type: ignore[arg-type]
        layer_input, y, params = saved[_SAVED * i : _SAVED * (i + 1)]
        assert layer_input is not None
        assert y is not None
        found: dict[str, Tensor | None] = {}
        dout = dout.view(y.shape)
        if layer.norm:
            dout, found["gamma"], found["beta"] = _norm_gradient(chain_input)(
                dout, y, params, t.gamma, layer.activation, layer.loaded_slope
            )
            # In front of batch norm a bias changes nothing.
            if needs.bias and t.bias is not None:
                found["bias"] = zeros_like(t.bias)
        elif bias_gradient is not None and i == len(layers) - 1:
            found["bias"] = bias_gradient
        elif _activates(layer) or needs.bias:
            dout, found["bias"] = activation_gradient(
                dout, y, layer.activation, layer.loaded_slope, t.bias if needs.bias else None
            )
        of_input = input_gradient or any(map(any, needs_grad[:i]))
        dx = None
        if of_input or needs.weight:
            dx, found["weight"] = aten_gradients(
                layer_input, dout, t.weight, layer.geometry,
                of_input=of_input, of_weight=bool(needs.weight),
            )  # fmt: skip
        fields = zip(LayerTensors._fields, needs, strict=True)
        gradients[:0] = [found.get(name) if need else None for name, need in fields]
        if dx is None:
            return None, [None] * (len(LayerTensors._fields) * i) + gradients
        dout = dx
    return dout.view(x.shape), gradients
