"""ATen's products on maps: convolution, transposed convolution, fully connected layer, backward.

Maps are (N, height, width, channels), contiguous, which ATen sees as channels_last memory; a row of
features is a 1x1 map. The weight is in torch's layout, of any dtype; products are in the map's.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.conv_block.geometry import ConvGeometry


class _Padding(NamedTuple):
    """How ATen is told a window's padding, of which it knows the symmetric kind alone.

    Attributes:
        inside: what ATen pads, or cuts from a transposed convolution's result, on all sides.
        around: what is padded around a convolution's input beforehand, in front and behind.
        extra: rows and columns that a transposed convolution adds behind.
        surplus: rows and columns that are dropped from its result.
    """

    inside: int
    around: tuple[int, int] = (0, 0)
    extra: int = 0
    surplus: int = 0


def _padding(gather: ConvGeometry) -> _Padding:
    w = gather.window
    if w.before == w.after:
        return _Padding(w.before)
    if not gather.transposed:
        return _Padding(0, (w.before, w.after))
    return _Padding(w.before, extra=max(w.before - w.after, 0), surplus=max(w.after - w.before, 0))


def _padded(x: Tensor, around: tuple[int, int]) -> Tensor:
    """A map as ATen sees it, (N, C, H, W), with zeros around; F.pad would copy even for none."""
    x = x.permute(0, 3, 1, 2)
    return F.pad(x, around * 2) if any(around) else x


def product(x: Tensor, weight: Tensor, bias: Tensor | None, gather: ConvGeometry) -> Tensor:
    """The map that a layer makes of a map, with its bias."""
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if gather.flat:
        return F.linear(x.flatten(1), weight, bias)[:, None, None]
    p, stride = _padding(gather), [gather.window.stride] * 2
    y: Tensor = torch.ops.aten.convolution(
        _padded(x, p.around), weight, bias, stride, [p.inside] * 2, [1, 1],
        gather.transposed, [p.extra] * 2, 1,
    )  # fmt: skip
    height, width = gather.result
    return y[..., :height, :width].permute(0, 2, 3, 1).contiguous()


def gradients(
    x: Tensor,
    dy: Tensor,
    weight: Tensor,
    gather: ConvGeometry,
    *,
    of_input: bool = False,
    of_weight: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a layer's input and weight.

    Args:
        x: the input; if its own gradient alone is wanted, only its shape and dtype count.
        dy: the gradient of the layer's result, of x's dtype.
        weight: the layer's.
        gather: the layer's.
        of_input: whether x's gradient is wanted.
        of_weight: whether the weight's is.

    Returns:
        dx as x or None; and dw in the weight's shape and dtype or None.
    """
    narrow = weight.to(dy.dtype)
    if gather.flat:
        rows, out = dy.flatten(1), None
        if of_weight:
            out = (rows.t() @ x.flatten(1)).to(weight.dtype)
        return (rows @ narrow).view(x.shape) if of_input else None, out
    p, stride = _padding(gather), [gather.window.stride] * 2
    dx, dw, _ = torch.ops.aten.convolution_backward(
        _padded(dy, (0, p.surplus)),
        _padded(x, p.around), narrow, None, stride, [p.inside] * 2, [1, 1],
        gather.transposed, [p.extra] * 2, 1, [of_input, of_weight, False],
    )  # fmt: skip
    if of_input:
        front, (_, height, width, _) = p.around[0], x.shape
        cut = dx[..., front : front + height, front : front + width]
        dx = cut.permute(0, 2, 3, 1).contiguous()
    return dx if of_input else None, dw.to(weight.dtype) if of_weight else None
