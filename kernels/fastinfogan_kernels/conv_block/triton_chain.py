"""A chain of blocks by the Triton kernels, forward and backward.

Between two blocks nothing is written but the raw map y: whoever loads it forms the activation, and
on the way back dy = A * g + B * y + C. Kept for the gradient: each block's y and its few numbers.
The counterpart for CPU tensors is `aten_chain`; `node` makes one autograd node of either.
"""

from collections.abc import Sequence

from torch import Tensor

from fastinfogan_kernels.conv_block import ops
from fastinfogan_kernels.conv_block.chain_input import Source
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.image_conv import fits
from fastinfogan_kernels.conv_block.ops import Layer, LayerTensors
from fastinfogan_kernels.runtime.workspace import zeros_like

_KEPT = 3
"""Kept of each layer: y, and of batch norm params and rstd."""


def forward(
    x: Tensor,
    source: Source,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> tuple[Tensor, list[Tensor | None]]:
    """Compute a chain.

    Args:
        x: (N, height, width, channels), contiguous: maps, or all images if the source says which.
        source: how x is read.
        layers: the blocks.
        tensors: theirs; running statistics are updated in place.
        groups: equal parts of the batch with statistics of their own.

    Returns:
        The last block's map, or (N, 1, 1, features); and what `backward` needs beside x.
    """
    found, kept = _products(x, source, layers, tensors, groups, deferred=False)
    last = layers[-1]
    if last.norm:
        y = ops.materialize(kept[-_KEPT], found.params, groups, last.activation, last.slope)
        return _to_shape(y, last), kept
    return found.x, kept


def features(
    x: Tensor,
    source: Source,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> tuple[Deferred, list[Tensor | None]]:
    """Compute a chain for an operation that forms the last activation while it loads.

    Arguments are those of `forward`; there may be no layers at all.

    Returns:
        Rows (N, features), deferred; and what `keep` needs.
    """
    found, kept = _products(x, source, layers, tensors, groups, deferred=True)
    return found._replace(x=found.x.flatten(1)), kept


def keep(kept: list[Tensor | None], gradient: Tensor) -> list[Tensor | None]:
    """What `backward` needs of a chain whose last layer was another operation's.

    Args:
        kept: what `features` left of the layers before.
        gradient: of the last layer's result, (N, 1, 1, columns), which stands in for the result.
    """
    return [*kept, gradient, None, None]


def _products(
    x: Tensor,
    source: Source,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
    *,
    deferred: bool,
) -> tuple[Deferred, list[Tensor | None]]:
    """The last block's map as whoever comes next loads it, and what is kept."""
    maps, params, slope = x, None, 1.0
    kept: list[Tensor | None] = []
    for i, (layer, t) in enumerate(zip(layers, tensors, strict=True)):
        window, where = layer.window, (layer.window, layer.gather.transposed, groups)
        behind = "none" if deferred or i < len(layers) - 1 else layer.activation
        rstd = None
        if i == 0 and _reads_images(layer, x, source):
            pixels = (x, source.index, source.scale, source.shift, source.dtype)
            if layer.norm:
                y, params, rstd = ops.image_norm_block(
                    *pixels, *t, window, groups, layer.eps, layer.momentum
                )
            else:
                y = ops.image_plain_block(
                    *pixels, t.weight, t.bias, window, groups, behind, layer.slope
                )
        else:
            operand = _as_rows(maps) if layer.flat else maps
            if layer.norm and source.process_group is not None:
                y, params, rstd = ops.norm_block_across_ranks(
                    Deferred(operand, params, slope), t, layer, groups, source.process_group
                )
            elif layer.norm:
                y, params, rstd = ops.norm_block(
                    operand, params, slope, *t, *where, layer.eps, layer.momentum
                )
            else:
                y = ops.plain_block(
                    operand, params, slope, t.weight, t.bias, *where, behind, layer.slope
                )
        if not layer.norm:
            params = None
        kept += [y, params, rstd]
        maps, slope = _to_shape(y, layer), layer.loaded_slope
    return Deferred(maps, params, slope), kept


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
    """The gradients of a chain.

    Args:
        x: as given to `forward`.
        source: likewise.
        layers: likewise.
        tensors: likewise.
        groups: likewise.
        kept: what `forward` left.
        dout: of its result; contiguous, of its dtype.
        wanted: which of each layer's tensors need a gradient.
        input_gradient: whether x does.
        bias_gradient: of the last layer, if `dout` is the gradient of its raw result; see `keep`.

    Returns:
        The input's gradient or None, and those of all layers' tensors in a row.
    """
    fields = LayerTensors._fields
    gradients: list[Tensor | None] = []
    last, (y, params, _) = layers[-1], kept[-_KEPT:]
    assert y is not None

    def asked(i: int) -> tuple[Tensor | None, ...]:
        """What lets the kernel that forms a block's g finish the block's numbers, too."""
        t = tensors[i]
        if layers[i].norm:
            own = source.process_group is None
            return (t.gamma, kept[_KEPT * i + 2], None) if own else (None, None, None)
        return None, None, t.bias if wanted[i][fields.index("bias")] else None

    numbers: Sequence[Tensor]
    if bias_gradient is not None:
        g, numbers = dout, [bias_gradient]
    else:
        g, numbers = ops.act_backward_reduce(
            dout.view(y.shape), y, params, groups, last.activation, last.slope,
            *asked(len(layers) - 1),
        )  # fmt: skip
    for i in range(len(layers) - 1, -1, -1):
        layer, t, want = layers[i], tensors[i], LayerTensors(*wanted[i])  # type: ignore[arg-type]
        y, params, rstd = kept[_KEPT * i : _KEPT * (i + 1)]
        assert y is not None
        where = (layer.window, layer.gather.transposed, groups)
        here: dict[str, Tensor | None] = {}
        coefficients, beside = None, None
        if layer.norm:
            if source.process_group is not None:
                assert t.gamma is not None
                assert params is not None
                assert rstd is not None
                values = y.numel() // len(t.gamma) // groups
                numbers = ops.norm_gradient_across_ranks(
                    numbers[0], values, t.gamma, params, rstd, source.process_group
                )
            coefficients, here["gamma"], here["beta"] = numbers
            beside = y
            # In front of batch norm a bias changes nothing.
            if want.bias and t.bias is not None:
                here["bias"] = zeros_like(t.bias)
        elif want.bias:
            (here["bias"],) = numbers
        before, before_params, slope = x, None, 1.0
        if i > 0:
            found, before_params, _ = kept[_KEPT * (i - 1) : _KEPT * i]
            assert found is not None
            y_before = found
            before, slope = _to_shape(y_before, layers[i - 1]), layers[i - 1].loaded_slope
        before = _as_rows(before) if layer.flat else before
        if want.weight and i == 0 and _reads_images(layer, x, source):
            here["weight"] = ops.image_weight_gradient(
                x, source.index, source.scale, source.shift, g, beside, coefficients, t.weight,
                layer.window, groups,
            )  # fmt: skip
        elif want.weight:
            here["weight"] = ops.weight_gradient(
                before, before_params, slope, g, beside, coefficients, t.weight, *where
            )
        gradients[:0] = [
            here.get(name) if needs else None for name, needs in zip(fields, want, strict=True)
        ]
        if not input_gradient and not any(map(any, wanted[:i])):
            return None, [None] * (len(fields) * i) + gradients
        # A fully connected layer's map without batch norm: its bias sums each pixel by itself,
        # where the product's tiles would sum each channel.
        apart = i > 0 and layers[i - 1].shape is not None and not layers[i - 1].norm
        to = None if apart or i == 0 else before
        finish = asked(i - 1) if to is not None else (None, None, None)
        g, numbers = ops.data_gradient(
            g, beside, coefficients, t.weight, to, before_params, slope, *finish, *where
        )
        g = g.view(x.shape if i == 0 else y_before.shape)
        if apart:
            g, numbers = ops.act_backward_reduce(
                g, y_before, None, groups, "rectifier", slope, *asked(i - 1)
            )
    return g, gradients


def _as_rows(y: Tensor) -> Tensor:
    """A map as the row that a fully connected layer reads."""
    return y.view(y.shape[0], 1, 1, -1)


def _to_shape(y: Tensor, layer: Layer) -> Tensor:
    return y.view(-1, *layer.shape) if layer.shape is not None else y


def _reads_images(layer: Layer, maps: Tensor, source: Source) -> bool:
    if layer.norm and source.process_group is not None:
        return False
    return not layer.gather.transposed and fits(maps.shape[3], layer.gather.window)
