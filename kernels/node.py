"""The one autograd node of a chain, over the operations of `chain`, and the chain in plain torch.

`reference_chain` is the definition: what the node must compute, the path of CPU tensors, and the
path of double backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan.kernels import chain, ranks
from fastinfogan.kernels.chain import Layer, LayerTensors
from fastinfogan.kernels.images import Images, fits
from fastinfogan.kernels.maps import Deferred
from fastinfogan.kernels.ranks import Group

_PER_LAYER = len(LayerTensors._fields)


def reference_layer(
    x: Tensor, layer: Layer, t: LayerTensors, groups: int, ranks_group: Group = None
) -> Tensor:
    """One block in plain torch, differentiable any number of times; batch statistics.

    Args:
        x: (N, C, H, W), or (N, features) for a fully connected layer, which also takes maps.
        layer: what it is.
        t: its tensors; running statistics are updated in place.
        groups: equal parts of the batch with statistics of their own.
        ranks_group: of processes with which statistics are shared.
    """
    z = linear_map(x, layer, t.weight, t.bias)
    if layer.norm:
        parts = [
            _batch_norm(part, layer, t, ranks_group)
            for part in (z.chunk(groups) if groups > 1 else (z,))
        ]
        z = torch.cat(parts) if groups > 1 else parts[0]
    return shape_output(activate(z, layer), layer)


def _batch_norm(z: Tensor, layer: Layer, t: LayerTensors, ranks_group: Group) -> Tensor:
    running = (t.running_mean, t.running_var)
    if ranks_group is None:
        return F.batch_norm(z, *running, t.gamma, t.beta, True, layer.momentum, layer.eps)
    assert t.gamma is not None
    assert t.beta is not None
    return ranks.batch_norm(z, t.gamma, t.beta, *running, layer.momentum, layer.eps, ranks_group)


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
    ranks_group: Group = None,
) -> Tensor:
    """A chain in plain torch."""
    x = x.materialize() if isinstance(x, Images) else x
    for layer, t in zip(layers, tensors, strict=True):
        x = reference_layer(x, layer, t, groups, ranks_group)
    return x


def fused_chain(
    x: Tensor | Images,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
    ranks_group: Group = None,
) -> Tensor:
    """A chain by the kernels, as one node; takes and gives what `reference_chain` does."""
    window = layers[0].gather.window
    across = layers[0].norm and ranks_group is not None
    if isinstance(x, Images) and (
        across or x.data.requires_grad or not fits(x.data.shape[3], window)
    ):
        x = x.materialize()
    if isinstance(x, Images):
        source = Source(x.dtype, ranks_group, x.index, x.scale, x.shift)
        maps = x.data
    else:
        source = Source(x.dtype, ranks_group)
        # Free for channels_last memory; autograd's way back is a view as well.
        maps = x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x.contiguous()[:, None, None]
    flat = [t for each in tensors for t in each]
    out: Tensor = _Chain.apply(tuple(layers), groups, source, maps, *flat)  # type: ignore[no-untyped-call]
    if layers[-1].flat and layers[-1].shape is None:
        return out.flatten(1)
    return _to_shape(out, layers[-1]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Source:
    """What a chain's node is told, beside tensors and layers.

    Attributes:
        dtype: of the maps computed from the input.
        ranks_group: of processes with which statistics are shared.
        index: which images of the map make the batch, or None.
        scale: by which pixels are multiplied while loading.
        shift: what is added then.
    """

    dtype: torch.dtype
    ranks_group: Group = None
    index: Tensor | None = None
    scale: float = 1.0
    shift: float = 0.0


def _as_rows(y: Tensor) -> Tensor:
    """A map as the row that a fully connected layer reads."""
    return y.view(y.shape[0], 1, 1, -1)


def _to_shape(y: Tensor, layer: Layer) -> Tensor:
    return y.view(-1, *layer.shape) if layer.shape is not None else y


def _reads_images(layer: Layer, maps: Tensor, source: Source) -> bool:
    if layer.norm and source.ranks_group is not None:
        return False
    return not layer.gather.transposed and fits(maps.shape[3], layer.gather.window)


def _regroup(flat: Sequence[Any]) -> list[LayerTensors]:
    return [LayerTensors(*flat[i : i + _PER_LAYER]) for i in range(0, len(flat), _PER_LAYER)]


class _Chain(torch.autograd.Function):
    """See the module `chain`. Saved: the input, each layer's y and few numbers, and the weights.

    Takes and gives maps, (N, height, width, channels).
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        layers: tuple[Layer, ...],
        groups: int,
        source: Source,
        x: Tensor,
        *flat: Tensor | None,
    ) -> Tensor:
        maps, params, slope = x, None, 1.0
        ys: list[Tensor] = []
        norms: list[Tensor | None] = []
        last = len(layers) - 1
        for i, (layer, t) in enumerate(zip(layers, _regroup(flat), strict=True)):
            window, where = layer.window, (layer.window, layer.gather.transposed, groups)
            behind = layer.activation if i == last else "none"
            if i == 0 and _reads_images(layer, x, source):
                pixels = (x, source.index, source.scale, source.shift, source.dtype)
                if layer.norm:
                    y, params, rstd = chain.image_norm_block(
                        *pixels, *t, window, groups, layer.eps, layer.momentum
                    )
                else:
                    y = chain.image_plain_block(
                        *pixels, t.weight, t.bias, window, groups, behind, layer.slope
                    )
            else:
                operand = _as_rows(maps) if layer.flat else maps
                if layer.norm and source.ranks_group is not None:
                    y, params, rstd = chain.norm_block_across_ranks(
                        Deferred(operand, params, slope), t, layer, groups, source.ranks_group
                    )
                elif layer.norm:
                    y, params, rstd = chain.norm_block(
                        operand, params, slope, *t, *where, layer.eps, layer.momentum
                    )
                else:
                    y = chain.plain_block(
                        operand, params, slope, t.weight, t.bias, *where, behind, layer.slope
                    )
            if not layer.norm:
                params = rstd = None
            ys.append(y)
            norms += [params, rstd]
            maps, slope = _to_shape(y, layer), layer.loaded_slope
        ctx.layers, ctx.groups, ctx.source = layers, groups, replace(source, index=None)
        ctx.save_for_backward(x, source.index, *ys, *norms, *flat)
        if layers[-1].norm:
            out: Tensor = chain.materialize(
                ys[-1], params, groups, layers[-1].activation, layers[-1].slope
            )
            return out
        return ys[-1]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        layers, groups = ctx.layers, ctx.groups
        count = len(layers)
        x, index, *saved = ctx.saved_tensors
        source = replace(ctx.source, index=index)
        ys, norms, flat = saved[:count], saved[count : 3 * count], saved[3 * count :]
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            found = _differentiable_gradients(x, source, layers, flat, groups, dout, needs)
            return None, None, None, *found
        tensors, wanted = _regroup(flat), _regroup(needs[1:])
        grads: list[Tensor | None] = [None] * len(flat)
        last, y = layers[-1], ys[-1]
        dout = dout.to(y.dtype).contiguous()
        g, sums = chain.enter_gradient(dout, y, norms[-2], groups, last.activation, last.slope)
        for i in range(count - 1, -1, -1):
            layer, t, want, y = layers[i], tensors[i], wanted[i], ys[i]
            where = (layer.window, layer.gather.transposed, groups)
            at = i * _PER_LAYER
            coefficients, beside = None, None
            if layer.norm:
                assert t.gamma is not None
                values = y.numel() // t.gamma.numel() // groups
                coefficients, dgamma, dbeta = chain.norm_gradient(
                    sums, values, t.gamma, norms[2 * i], norms[2 * i + 1]
                )
                if source.ranks_group is not None:
                    # gamma and beta have their own rank's gradients, dy is formed from all.
                    coefficients, _, _ = chain.norm_gradient(
                        ranks.gather_tiles(sums, source.ranks_group),
                        values * ranks.size(source.ranks_group),
                        t.gamma, norms[2 * i], norms[2 * i + 1],
                    )  # fmt: skip
                beside = y
                grads[at + 2] = dgamma if want.gamma else None
                grads[at + 3] = dbeta if want.beta else None
                # In front of batch norm a bias changes nothing.
                grads[at + 1] = (
                    None if t.bias is None or not want.bias else t.bias.new_zeros(t.bias.shape)
                )
            elif want.bias:
                grads[at + 1] = chain.bias_gradient(sums, t.bias)
            before, before_params, slope = x, None, 1.0
            if i > 0:
                before = _to_shape(ys[i - 1], layers[i - 1])
                before_params, slope = norms[2 * i - 2], layers[i - 1].loaded_slope
            before = _as_rows(before) if layer.flat else before
            if want.weight and i == 0 and _reads_images(layer, x, source):
                grads[at] = chain.image_weight_gradient(
                    x, index, source.scale, source.shift, g, beside, coefficients, t.weight,
                    layer.window, groups,
                )  # fmt: skip
            elif want.weight:
                grads[at] = chain.weight_gradient(
                    before, before_params, slope, g, beside, coefficients, t.weight, *where
                )
            if not needs[0] and not any(map(any, wanted[:i])):
                return None, None, None, None, *grads
            # A fully connected layer's map without batch norm: its bias sums each pixel by itself,
            # where the product's tiles would sum each channel.
            apart = i > 0 and layers[i - 1].shape is not None and not layers[i - 1].norm
            g, sums = chain.data_gradient(
                g, beside, coefficients, t.weight, None if apart or i == 0 else before,
                before_params, slope, *where,
            )  # fmt: skip
            g = g.view(ys[i - 1].shape if i > 0 else x.shape)
            if apart:
                g, sums = chain.enter_gradient(g, ys[i - 1], None, groups, "rectifier", slope)
        return None, None, None, g, *grads


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
            running_mean=None,
            running_var=None,
        )
        for t in _regroup(flat)
    ]
    # A map that was given as a tensor is images as they are.
    start: Tensor | Images = Images(x, source.index, source.scale, source.shift, source.dtype)
    if layers[0].flat:
        start = x.flatten(1)
    out = reference_chain(start, layers, tensors, groups, source.ranks_group)
    out = (out.permute(0, 2, 3, 1) if out.dim() == 4 else out).reshape(dout.shape)
    inputs = [x, *flat]
    asked = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    found = iter(torch.autograd.grad(out, asked, dout, create_graph=True, allow_unused=True))
    return [
        next(found) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=True)
    ]
