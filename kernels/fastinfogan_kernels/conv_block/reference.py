"""The definition of a block and of a chain, in plain torch; double backward uses it, too."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.conv_block import sync_batch_norm
from fastinfogan_kernels.conv_block.layers import Images, Layer, LayerTensors
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup


def reference_layer(
    x: Tensor, layer: Layer, t: LayerTensors, groups: int, process_group: ProcessGroup = None
) -> Tensor:
    """Compute one block in plain torch by batch statistics, differentiable any number of times.

    Args:
        x: (N, C, H, W), or (N, features) for a fully connected layer, which also takes maps.
        layer: the block.
        t: its tensors; running statistics are updated in place.
        groups: equal parts of the batch with statistics of their own.
        process_group: of processes with which statistics are shared.
    """
    z = linear_map(x, layer, t.weight, t.bias)
    if layer.norm:
        parts = [
            _batch_norm(part, layer, t, process_group)
            for part in (z.chunk(groups) if groups > 1 else (z,))
        ]
        z = torch.cat(parts) if groups > 1 else parts[0]
    return shape_output(apply_activation(z, layer), layer)


def _batch_norm(z: Tensor, layer: Layer, t: LayerTensors, process_group: ProcessGroup) -> Tensor:
    running = (t.running_mean, t.running_var)
    if process_group is None:
        return F.batch_norm(z, *running, t.gamma, t.beta, True, layer.momentum, layer.eps)
    assert t.gamma is not None
    assert t.beta is not None
    return sync_batch_norm.batch_norm(
        z, t.gamma, t.beta, *running, layer.momentum, layer.eps, process_group
    )


def linear_map(x: Tensor, layer: Layer, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a layer's convolution, transposed convolution or matrix product, in plain torch."""
    if layer.flat:
        return F.linear(x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x, weight, bias)
    w = layer.geometry.window
    if not layer.geometry.transposed:
        if w.pad_before == w.pad_after:
            return F.conv2d(x, weight, bias, w.stride, w.pad_before)
        return F.conv2d(F.pad(x, (w.pad_before, w.pad_after) * 2), weight, bias, w.stride)
    # conv_transpose2d cuts the padding from both ends alike; the output size says what remains.
    extra = max(w.pad_before - w.pad_after, 0)
    y = F.conv_transpose2d(x, weight, bias, w.stride, w.pad_before, extra)
    return y[..., : w.height, : w.width] if y.shape[-2:] != (w.height, w.width) else y


def apply_activation(z: Tensor, layer: Layer) -> Tensor:
    """Apply a layer's activation, in plain torch."""
    if layer.activation == "sigmoid":
        return torch.sigmoid(z)
    if layer.activation == "tanh":
        return torch.tanh(z)
    if layer.loaded_slope == 1.0:
        return z
    # In place is sound: neither batch norm nor a linear map reads its output in backward.
    return F.relu_(z) if layer.slope == 0.0 else F.leaky_relu_(z, layer.slope)


def shape_output(z: Tensor, layer: Layer) -> Tensor:
    """Reshape a fully connected layer's features into their feature map, if they form one."""
    return z if layer.shape is None else z.view(-1, *layer.shape).permute(0, 3, 1, 2)


def reference_chain(
    x: Tensor | Images,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
    process_group: ProcessGroup = None,
) -> Tensor:
    """Compute a chain in plain torch."""
    x = x.materialize() if isinstance(x, Images) else x
    for layer, t in zip(layers, tensors, strict=True):
        x = reference_layer(x, layer, t, groups, process_group)
    return x
