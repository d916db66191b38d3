"""The one autograd node of a chain, over the operations of `chain`, and the chain in plain torch.

`reference_chain` is the definition: what a node must compute, and the way of double backward. The
node is computed by the Triton kernels (`fused_chain`), or by ATen and our epilogues for CPU tensors
(`native_chain`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.conv_block import aten_chain, sync_batch_norm, triton_chain
from fastinfogan_kernels.conv_block.chain_input import Source
from fastinfogan_kernels.conv_block.image_conv import Images, fits
from fastinfogan_kernels.conv_block.ops import Layer, LayerTensors
from fastinfogan_kernels.conv_block.sync_batch_norm import Group

Way = Literal["triton", "native"]

_PER_LAYER = len(LayerTensors._fields)


def reference_layer(
    x: Tensor, layer: Layer, t: LayerTensors, groups: int, process_group: Group = None
) -> Tensor:
    """One block in plain torch, differentiable any number of times; batch statistics.

    Args:
        x: (N, C, H, W), or (N, features) for a fully connected layer, which also takes maps.
        layer: what it is.
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
    return shape_output(activate(z, layer), layer)


def _batch_norm(z: Tensor, layer: Layer, t: LayerTensors, process_group: Group) -> Tensor:
    running = (t.running_mean, t.running_var)
    if process_group is None:
        return F.batch_norm(z, *running, t.gamma, t.beta, True, layer.momentum, layer.eps)
    assert t.gamma is not None
    assert t.beta is not None
    return sync_batch_norm.batch_norm(
        z, t.gamma, t.beta, *running, layer.momentum, layer.eps, process_group
    )


def linear_map(x: Tensor, layer: Layer, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution, transposed convolution or product of a layer, in plain torch."""
    if layer.flat:
        return F.linear(x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x, weight, bias)
    w = layer.gather.window
    if not layer.gather.transposed:
        if w.before == w.after:
            return F.conv2d(x, weight, bias, w.stride, w.before)
        return F.conv2d(F.pad(x, (w.before, w.after) * 2), weight, bias, w.stride)
    # The transposed convolution's padding cuts both ends alike; the map's size says what is left.
    extra = max(w.before - w.after, 0)
    y = F.conv_transpose2d(x, weight, bias, w.stride, w.before, extra)
    return y[..., : w.height, : w.width] if y.shape[-2:] != (w.height, w.width) else y


def activate(z: Tensor, layer: Layer) -> Tensor:
    """A layer's activation, in plain torch."""
    if layer.activation == "sigmoid":
        return torch.sigmoid(z)
    if layer.activation == "tanh":
        return torch.tanh(z)
    if layer.loaded_slope == 1.0:
        return z
    # In place is sound: neither batch norm nor the maps read their own output in backward.
    return F.relu_(z) if layer.slope == 0.0 else F.leaky_relu_(z, layer.slope)


def shape_output(z: Tensor, layer: Layer) -> Tensor:
    """Give a fully connected layer's features the shape of their map, if they form one."""
    return z if layer.shape is None else z.view(-1, *layer.shape).permute(0, 3, 1, 2)


def reference_chain(
    x: Tensor | Images,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
    process_group: Group = None,
) -> Tensor:
    """A chain in plain torch."""
    x = x.materialize() if isinstance(x, Images) else x
    for layer, t in zip(layers, tensors, strict=True):
        x = reference_layer(x, layer, t, groups, process_group)
    return x


def fused_chain(
    x: Tensor | Images,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
    process_group: Group = None,
) -> Tensor:
    """A chain by the kernels, as one node; takes and gives what `reference_chain` does."""
    window = layers[0].gather.window
    across = layers[0].norm and process_group is not None
    if isinstance(x, Images):
        if across or x.data.requires_grad or not fits(x.data.shape[3], window):
            x = x.materialize()
        else:
            source = Source(x.dtype, process_group, x.index, x.scale, x.shift)
            return _node("triton", x.data, source, layers, tensors, groups)
    return _node("triton", _maps(x), Source(x.dtype, process_group), layers, tensors, groups)


def native_chain(
    x: Tensor | Images, layers: Sequence[Layer], tensors: Sequence[LayerTensors], groups: int
) -> Tensor:
    """As `fused_chain`, by ATen's products and our epilogues; on any device."""
    x = x.materialize() if isinstance(x, Images) else x
    return _node("native", _maps(x), Source(x.dtype), layers, tensors, groups)


def _maps(x: Tensor) -> Tensor:
    """Free for channels_last memory; autograd's way back is a view as well."""
    return x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x.contiguous()[:, None, None]


def _node(
    way: Way,
    maps: Tensor,
    source: Source,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> Tensor:
    flat = [t for each in tensors for t in each]
    out: Tensor = _Chain.apply(way, tuple(layers), groups, source, maps, *flat)  # type: ignore[no-untyped-call]
    if layers[-1].flat and layers[-1].shape is None:
        return out.flatten(1)
    result: Tensor = out.permute(0, 3, 1, 2)
    return result


def _regroup(flat: Sequence[Any]) -> list[LayerTensors]:
    return [LayerTensors(*flat[i : i + _PER_LAYER]) for i in range(0, len(flat), _PER_LAYER)]


def _first_that_learns(needs: Sequence[bool]) -> int:
    """The first layer that backward reaches.

    Args:
        needs: whether the input, and each layer's tensors in a row, need a gradient.
    """
    learns = [any(each) for each in _regroup(needs[1:])]
    return 0 if needs[0] or True not in learns else learns.index(True)


class _Chain(torch.autograd.Function):
    """See `triton_chain` and `aten_chain`. Takes and gives maps, (N, height, width, channels)."""

    @staticmethod
    def forward(
        ctx: Any,
        way: Way,
        layers: tuple[Layer, ...],
        groups: int,
        source: Source,
        x: Tensor,
        *flat: Tensor | None,
    ) -> Tensor:
        how = triton_chain if way == "triton" else aten_chain
        out: Tensor
        out, kept = how.forward(x, source, layers, _regroup(flat), groups)
        # The kernels read the map behind the layer in front, too; ATen's way keeps it once more.
        first = _first_that_learns(ctx.needs_input_grad[4:])
        unread = max(first - (way == "triton"), 0) * (len(kept) // len(layers))
        kept[:unread] = [None] * unread
        # Backward reads no running statistics, and others may write them until then.
        parameters = [
            t for each in _regroup(flat) for t in each._replace(running_mean=None, running_var=None)
        ]
        ctx.how = way, layers, groups, replace(source, index=None)
        ctx.dtype = out.dtype
        ctx.save_for_backward(x, source.index, *kept, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        way, layers, groups, source = ctx.how
        x, index, *saved = ctx.saved_tensors
        source = replace(source, index=index)
        cut = len(saved) - _PER_LAYER * len(layers)
        kept, flat = saved[:cut], saved[cut:]
        needs = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            found = _differentiable_gradients(x, source, layers, flat, groups, dout, needs)
            return None, None, None, None, *found
        how = triton_chain if way == "triton" else aten_chain
        dx, gradients = how.backward(
            x, source, layers, _regroup(flat), groups, kept,
            dout.to(ctx.dtype).contiguous(), _regroup(needs[1:]),
            input_gradient=needs[0],
        )  # fmt: skip
        return None, None, None, None, dx, *gradients


def _differentiable_gradients(
    x: Tensor,
    source: Source,
    layers: Sequence[Layer],
    flat: Sequence[Tensor | None],
    groups: int,
    dout: Tensor,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients by the reference, recomputed so that they can be differentiated again."""
    tensors = [
        t._replace(
            weight=t.weight.to(source.dtype),
            bias=None if t.bias is None else t.bias.to(source.dtype),
        )
        for t in _regroup(flat)
    ]
    # A map that was given as a tensor is images as they are.
    start: Tensor | Images = Images(x, source.index, source.scale, source.shift, source.dtype)
    if layers[0].flat:
        start = x.flatten(1)
    out = reference_chain(start, layers, tensors, groups, source.process_group)
    out = (out.permute(0, 2, 3, 1) if out.dim() == 4 else out).reshape(dout.shape)
    inputs = [x, *flat]
    asked = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    found = iter(torch.autograd.grad(out, asked, dout, create_graph=True, allow_unused=True))
    return [
        next(found) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=True)
    ]
