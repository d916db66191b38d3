"""A chain of blocks by ATen's products and our epilogues, forward and backward.

The way of CPU tensors, as the kernels' chain is of CUDA tensors; `node` makes one autograd node of
either. Kept for the gradient: each block's input, its y if batch norm follows, its few numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastinfogan.kernels import aten, epilogue
from fastinfogan.kernels.chain import Layer, LayerTensors

_PER_LAYER = 3


def _acts(layer: Layer) -> bool:
    """Whether the layer's activation changes anything."""
    return layer.activation in ("sigmoid", "tanh") or layer.loaded_slope != 1.0


def forward(
    x: Tensor, layers: Sequence[Layer], tensors: Sequence[LayerTensors], groups: int
) -> tuple[Tensor, list[Tensor | None]]:
    """Compute a chain.

    Args:
        x: (N, height, width, channels), contiguous.
        layers: the blocks.
        tensors: theirs; running statistics are updated in place.
        groups: equal parts of the batch with statistics of their own.

    Returns:
        The last block's map, or (N, 1, 1, features); and what `backward` needs.
    """
    kept: list[Tensor | None] = []
    for layer, t in zip(layers, tensors, strict=True):
        x = x.flatten(1)[:, None, None] if layer.flat else x
        y = aten.product(x, t.weight, t.bias, layer.gather)
        if layer.norm:
            out, params = epilogue.norm_activation(
                y, *t[2:], groups, layer.momentum, layer.eps, layer.activation, layer.loaded_slope
            )
            kept += [x, y, params]
        else:
            out = y
            if _acts(layer):
                out = epilogue.activation(y, layer.activation, layer.slope)
            kept += [x, out, None]
        x = out if layer.shape is None else out.view(-1, *layer.shape)
    return x, kept


def backward(
    dout: Tensor,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    kept: Sequence[Tensor | None],
    wanted: Sequence[Sequence[bool]],
    *,
    input_gradient: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of a chain.

    Args:
        dout: of its result; contiguous, of the result's dtype.
        layers: as given to `forward`.
        tensors: likewise.
        kept: what `forward` left.
        wanted: which of each layer's tensors need a gradient.
        input_gradient: whether the chain's input does.

    Returns:
        The input's gradient or None, and those of all layers' tensors in a row.
    """
    gradients: list[Tensor | None] = []
    for i in range(len(layers) - 1, -1, -1):
        layer, t, want = layers[i], tensors[i], wanted[i]
        x, y, params = kept[_PER_LAYER * i : _PER_LAYER * (i + 1)]
        assert x is not None
        assert y is not None
        here: dict[str, Tensor | None] = {}
        dout = dout.view(y.shape)
        if layer.norm:
            dout, here["gamma"], here["beta"] = epilogue.norm_activation_gradient(
                dout, y, params, t.gamma, layer.activation, layer.loaded_slope
            )
            # In front of batch norm a bias changes nothing.
            here["bias"] = None if t.bias is None else torch.zeros_like(t.bias)
        elif _acts(layer) or want[1]:
            bias = t.bias if want[1] else None
            dout, here["bias"] = epilogue.activation_gradient(
                dout, y, layer.activation, layer.loaded_slope, bias
            )
        on = input_gradient or any(map(any, wanted[:i]))
        dx, here["weight"] = aten.gradients(
            x, dout, t.weight, layer.gather, of_input=on, of_weight=want[0]
        )
        fields = zip(LayerTensors._fields, want, strict=True)
        gradients[:0] = [here.get(name) if needs else None for name, needs in fields]
        if dx is None:
            return None, [None] * (len(LayerTensors._fields) * i) + gradients
        dout = dx
    return dout, gradients
