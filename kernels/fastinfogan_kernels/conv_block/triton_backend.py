"""Forward and backward pass of a chain by the Triton kernels.

Between two blocks only the raw feature map y is written: the next kernel forms the activation while
loading, and in backward dy = A * g + B * y + C. Each block saves y and batch norm's params and
rstd. `cpu_backend` is the counterpart for CPU tensors; `autograd` makes one node of either.
"""

from collections.abc import Sequence

from torch import Tensor

from fastinfogan_kernels.conv_block import elementwise, image_conv, ops
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.layers import ChainInput, Layer, LayerTensors
from fastinfogan_kernels.runtime.workspace import zeros_like

_SAVED = 3
"""Tensors saved by each layer: y, and batch norm's params and rstd."""


def forward(
    x: Tensor,
    chain_input: ChainInput,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> tuple[Tensor, list[Tensor | None]]:
    """Compute a chain.

    Args:
        x: (N, height, width, channels), contiguous: feature maps, or images that the index selects.
        chain_input: how x is read.
        layers: the blocks.
        tensors: each block's; running statistics are updated in place.
        groups: equal parts of the batch with statistics of their own.

    Returns:
        The last block's feature map, or (N, 1, 1, features); and what `backward` needs beside x.
    """
    out, saved = _run_blocks(x, chain_input, layers, tensors, groups, deferred=False)
    last, y = layers[-1], saved[-_SAVED]
    if last.norm:
        assert y is not None
        y = elementwise.materialize(y, out.params, groups, last.activation, last.slope)
        return _to_shape(y, last), saved
    return out.x, saved


def forward_deferred(
    x: Tensor,
    chain_input: ChainInput,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> tuple[Deferred, list[Tensor | None]]:
    """Compute a chain for an operation that forms the last activation while it loads.

    Arguments are those of `forward`; there may be no layers at all.

    Returns:
        Rows (N, features), deferred; and what `saved_of_head` needs.
    """
    out, saved = _run_blocks(x, chain_input, layers, tensors, groups, deferred=True)
    return out._replace(x=out.x.flatten(1)), saved


def saved_of_head(saved: list[Tensor | None], gradient: Tensor) -> list[Tensor | None]:
    """Return what `backward` needs of a chain whose last layer another operation computed.

    Args:
        saved: by `forward_deferred`, of the layers before.
        gradient: of the last layer's result, (N, 1, 1, columns), which stands in for the result.
    """
    return [*saved, gradient, None, None]


def _run_blocks(
    x: Tensor,
    chain_input: ChainInput,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
    *,
    deferred: bool,
) -> tuple[Deferred, list[Tensor | None]]:
    """Return the last block's result, deferred, and what is saved."""
    out = Deferred(x)
    saved: list[Tensor | None] = []
    c = chain_input
    for i, (layer, t) in enumerate(zip(layers, tensors, strict=True)):
        window = layer.geometry.window.as_list
        where = (window, layer.geometry.transposed, groups)
        activation = "none" if deferred or i < len(layers) - 1 else layer.activation
        operand = out._replace(x=_as_rows(out.x)) if layer.flat else out
        read = (operand.x, operand.params, operand.slope)
        norm = (layer.eps, layer.momentum)
        params, rstd = None, None
        if i == 0 and _reads_images(layer, x, c):
            images = (x, c.index, c.scale, c.shift, c.dtype)
            if layer.norm:
                y, params, rstd = image_conv.image_norm_block(*images, *t, window, groups, *norm)
            else:
                y = image_conv.image_plain_block(
                    *images, t.weight, t.bias, window, groups, activation, layer.slope
                )
        elif layer.norm and c.process_group is not None:
            y, params, rstd = ops.sync_norm_block(operand, t, layer, groups, c.process_group)
        elif layer.norm:
            y, params, rstd = ops.norm_block(*read, *t, *where, *norm)
        else:
            y = ops.plain_block(*read, t.weight, t.bias, *where, activation, layer.slope)
        saved += [y, params, rstd]
        out = Deferred(_to_shape(y, layer), params, layer.loaded_slope)
    return out, saved


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
    """Compute the gradients of a chain.

    Args:
        x: as given to `forward`.
        chain_input: likewise.
        layers: likewise.
        tensors: likewise.
        groups: likewise.
        saved: by `forward`.
        dout: of its result; contiguous, of its dtype.
        needs_grad: which of each layer's tensors need a gradient.
        input_gradient: whether x needs one.
        bias_gradient: of the last layer, if `dout` is the gradient of its raw result; see
            `saved_of_head`.

    Returns:
        The input's gradient or None, and those of all layers' tensors in a row.
    """
    fields = LayerTensors._fields
    gradients: list[Tensor | None] = []
    process_group = chain_input.process_group
    last, (y, params, _) = layers[-1], saved[-_SAVED:]
    assert y is not None

    def statistics(i: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return gamma, rstd and bias, by which the kernel that forms g finalizes its sums."""
        t = tensors[i]
        if layers[i].norm:
            local = process_group is None
            return (t.gamma, saved[_SAVED * i + 2], None) if local else (None, None, None)
        return None, None, t.bias if needs_grad[i][fields.index("bias")] else None

    sums: Sequence[Tensor]
    if bias_gradient is not None:
        g, sums = dout, [bias_gradient]
    else:
        g, sums = elementwise.act_backward_reduce(
            dout.view(y.shape), y, params, groups, last.activation, last.slope,
            *statistics(len(layers) - 1),
        )  # fmt: skip
    for i in range(len(layers) - 1, -1, -1):
        layer, t = layers[i], tensors[i]
        needs = LayerTensors(*needs_grad[i])  # type: ignore[arg-type]
        y, params, rstd = saved[_SAVED * i : _SAVED * (i + 1)]
        assert y is not None
        window = layer.geometry.window.as_list
        where = (window, layer.geometry.transposed, groups)
        found: dict[str, Tensor | None] = {}
        coefficients, y_of_norm = None, None
        if layer.norm:
            if process_group is not None:
                assert t.gamma is not None
                assert params is not None
                assert rstd is not None
                count = y.numel() // len(t.gamma) // groups
                sums = ops.sync_norm_gradient(sums[0], count, t.gamma, params, rstd, process_group)
            coefficients, found["gamma"], found["beta"] = sums
            y_of_norm = y
            # In front of batch norm a bias changes nothing.
            if needs.bias and t.bias is not None:
                found["bias"] = zeros_like(t.bias)
        elif needs.bias:
            (found["bias"],) = sums
        previous, previous_y = Deferred(x), x
        if i > 0:
            stored, previous_params, _ = saved[_SAVED * (i - 1) : _SAVED * i]
            assert stored is not None
            previous_y, before = stored, layers[i - 1]
            previous = Deferred(_to_shape(stored, before), previous_params, before.loaded_slope)
        read = _as_rows(previous.x) if layer.flat else previous.x
        if needs.weight and i == 0 and _reads_images(layer, x, chain_input):
            found["weight"] = image_conv.image_weight_gradient(
                x, chain_input.index, chain_input.scale, chain_input.shift, g, y_of_norm,
                coefficients, t.weight, window, groups,
            )  # fmt: skip
        elif needs.weight:
            found["weight"] = ops.weight_gradient(
                read, previous.params, previous.slope, g, y_of_norm, coefficients, t.weight, *where
            )
        gradients[:0] = [
            found.get(name) if need else None for name, need in zip(fields, needs, strict=True)
        ]
        if not input_gradient and not any(map(any, needs_grad[:i])):
            return None, [None] * (len(fields) * i) + gradients
        # Without batch norm the bias of a fully connected layer that forms a map sums each pixel by
        # itself, where the product's tiles would sum each channel.
        separate = i > 0 and layers[i - 1].shape is not None and not layers[i - 1].norm
        fused = i > 0 and not separate
        g, sums = ops.data_gradient(
            g, y_of_norm, coefficients, t.weight, read if fused else None, previous.params,
            previous.slope, *(statistics(i - 1) if fused else (None, None, None)), *where,
        )  # fmt: skip
        g = g.view(previous_y.shape)
        if separate:
            g, sums = elementwise.act_backward_reduce(
                g, previous_y, None, groups, "leaky_relu", previous.slope, *statistics(i - 1)
            )
    return g, gradients


def _as_rows(y: Tensor) -> Tensor:
    """Reshape a feature map to the row that a fully connected layer reads."""
    return y.view(y.shape[0], 1, 1, -1)


def _to_shape(y: Tensor, layer: Layer) -> Tensor:
    return y.view(-1, *layer.shape) if layer.shape is not None else y


def _reads_images(layer: Layer, x: Tensor, chain_input: ChainInput) -> bool:
    if layer.norm and chain_input.process_group is not None:
        return False
    geometry = layer.geometry
    return not geometry.transposed and image_conv.supports_images(x.shape[3], geometry.window)
