"""A chain of blocks by ATen's products and our epilogues, forward and backward.

The way of CPU tensors, as the kernels' chain is of CUDA tensors; `node` makes one autograd node of
either. Kept for the gradient: each block's input, its y if batch norm follows, its few numbers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fastinfogan_kernels.conv_block import aten, cpu_epilogue
from fastinfogan_kernels.conv_block.chain_input import Source
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.ops import Layer, LayerTensors
from fastinfogan_kernels.runtime.workspace import zeros_like

_KEPT = 3
"""Kept of each layer: what it read, y or without batch norm the result, and batch norm's params."""


def _acts(layer: Layer) -> bool:
    """Whether the layer's activation changes anything."""
    return layer.activation in ("sigmoid", "tanh") or layer.loaded_slope != 1.0


def _norm(source: Source) -> Any:
    """Batch norm and activation, by the statistics of those with whom they are shared."""
    if source.process_group is None:
        return cpu_epilogue.norm_activation
    return partial(cpu_epilogue.norm_activation_across_ranks, process_group=source.process_group)


def _norm_gradient(source: Source) -> Any:
    """The gradient of `_norm`."""
    if source.process_group is None:
        return cpu_epilogue.norm_activation_gradient
    return partial(
        cpu_epilogue.norm_activation_gradient_across_ranks, process_group=source.process_group
    )


def forward(
    x: Tensor,
    source: Source,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> tuple[Tensor, list[Tensor | None]]:
    """As `triton_chain.forward`, for maps, on any device and in any floating dtype."""
    kept: list[Tensor | None] = []
    for layer, t in zip(layers, tensors, strict=True):
        x = x.flatten(1)[:, None, None] if layer.flat else x
        y = aten.product(x, t.weight, t.bias, layer.gather)
        if layer.norm:
            out, params = _norm(source)(
                y, *t[2:], groups, layer.momentum, layer.eps, layer.activation, layer.loaded_slope
            )
            kept += [x, y, params]
        else:
            if _acts(layer):
                cpu_epilogue.activation_(y, layer.activation, layer.slope)
            out = y
            kept += [x, out, None]
        x = out if layer.shape is None else out.view(-1, *layer.shape)
    return x, kept


def features(
    x: Tensor,
    source: Source,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> tuple[Deferred, list[Tensor | None]]:
    """As `triton_chain.features`; the values are written out."""
    out, kept = forward(x, source, layers, tensors, groups)
    rows = out.flatten(1)
    return Deferred(rows), [*kept, rows[:, None, None]]


def keep(kept: list[Tensor | None], gradient: Tensor) -> list[Tensor | None]:
    """As `triton_chain.keep`."""
    return [*kept, gradient, None]


def backward(
    x: Tensor,
    source: Source,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
    kept: Sequence[Tensor | None],
    dout: Tensor,
    wanted: Sequence[Sequence[bool]],
    *,
    input_gradient: bool,
    bias_gradient: Tensor | None = None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """As `triton_chain.backward`."""
    gradients: list[Tensor | None] = []
    for i in range(len(layers) - 1, -1, -1):
        layer, t, want = layers[i], tensors[i], LayerTensors(*wanted[i])  # type: ignore[arg-type]
        read, y, params = kept[_KEPT * i : _KEPT * (i + 1)]
        assert read is not None
        assert y is not None
        here: dict[str, Tensor | None] = {}
        dout = dout.view(y.shape)
        if layer.norm:
            dout, here["gamma"], here["beta"] = _norm_gradient(source)(
                dout, y, params, t.gamma, layer.activation, layer.loaded_slope
            )
            # In front of batch norm a bias changes nothing.
            if want.bias and t.bias is not None:
                here["bias"] = zeros_like(t.bias)
        elif bias_gradient is not None and i == len(layers) - 1:
            here["bias"] = bias_gradient
        elif _acts(layer) or want.bias:
            dout, here["bias"] = cpu_epilogue.activation_gradient(
                dout, y, layer.activation, layer.loaded_slope, t.bias if want.bias else None
            )
        on = input_gradient or any(map(any, wanted[:i]))
        dx = None
        if on or want.weight:
            dx, here["weight"] = aten.gradients(
                read, dout, t.weight, layer.gather, of_input=on, of_weight=bool(want.weight)
            )
        fields = zip(LayerTensors._fields, want, strict=True)
        gradients[:0] = [here.get(name) if needs else None for name, needs in fields]
        if dx is None:
            return None, [None] * (len(LayerTensors._fields) * i) + gradients
        dout = dx
    return dout.view(x.shape), gradients
