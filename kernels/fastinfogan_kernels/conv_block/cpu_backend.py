"""Forward and backward pass of a chain by ATen's convolutions and fused epilogues.

The backend of CPU tensors, as `triton_backend` is of CUDA tensors; `autograd` makes one node of
either. Each block saves its input, its y if batch norm follows, and batch norm's params.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fastinfogan_kernels.conv_block import aten, cpu_epilogue
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.layers import ChainInput, Layer, LayerTensors
from fastinfogan_kernels.runtime.workspace import zeros_like

_SAVED = 3
"""Tensors saved by each layer: its input; y, or without batch norm the result; and the params."""


def _activates(layer: Layer) -> bool:
    """Whether the layer's activation changes anything."""
    return layer.activation in ("sigmoid", "tanh") or layer.loaded_slope != 1.0


def _norm(chain_input: ChainInput) -> Any:
    """Batch norm and activation, with the statistics of the process group if there is one."""
    group = chain_input.process_group
    if group is None:
        return cpu_epilogue.norm_activation
    return partial(cpu_epilogue.sync_norm_activation, process_group=group)


def _norm_gradient(chain_input: ChainInput) -> Any:
    """The gradient of `_norm`."""
    group = chain_input.process_group
    if group is None:
        return cpu_epilogue.norm_activation_gradient
    return partial(cpu_epilogue.sync_norm_activation_gradient, process_group=group)


def forward(
    x: Tensor,
    chain_input: ChainInput,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> tuple[Tensor, list[Tensor | None]]:
    """As `triton_backend.forward`, for feature maps, on any device and in any floating dtype."""
    saved: list[Tensor | None] = []
    for layer, t in zip(layers, tensors, strict=True):
        x = x.flatten(1)[:, None, None] if layer.flat else x
        y = aten.convolution(x, t.weight, t.bias, layer.geometry)
        if layer.norm:
            out, params = _norm(chain_input)(
                y, *t[2:], groups, layer.momentum, layer.eps, layer.activation, layer.loaded_slope
            )
            saved += [x, y, params]
        else:
            if _activates(layer):
                cpu_epilogue.activation_(y, layer.activation, layer.slope)
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
    """As `triton_backend.forward_deferred`; the values are written out."""
    out, saved = forward(x, chain_input, layers, tensors, groups)
    rows = out.flatten(1)
    return Deferred(rows), [*saved, rows[:, None, None]]


def saved_of_head(saved: list[Tensor | None], gradient: Tensor) -> list[Tensor | None]:
    """As `triton_backend.saved_of_head`."""
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
    """As `triton_backend.backward`."""
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
            dout, found["bias"] = cpu_epilogue.activation_gradient(
                dout, y, layer.activation, layer.loaded_slope, t.bias if needs.bias else None
            )
        of_input = input_gradient or any(map(any, needs_grad[:i]))
        dx = None
        if of_input or needs.weight:
            dx, found["weight"] = aten.gradients(
                layer_input, dout, t.weight, layer.geometry,
                of_input=of_input, of_weight=bool(needs.weight),
            )  # fmt: skip
        fields = zip(LayerTensors._fields, needs, strict=True)
        gradients[:0] = [found.get(name) if need else None for name, need in fields]
        if dx is None:
            return None, [None] * (len(LayerTensors._fields) * i) + gradients
        dout = dx
    return dout.view(x.shape), gradients
