"""ATen's convolution, transposed convolution and fully connected layer, forward and backward.

Feature maps are (N, height, width, channels), contiguous, which ATen sees as channels_last memory;
a row of features is a 1x1 map. The weight is in torch's layout, of any dtype; the computation is in
the feature map's.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.conv_block.layers import ConvGeometry


class _Padding(NamedTuple):
    """A window's padding in terms of ATen's, which is symmetric.

    Attributes:
        inside: what ATen pads, or cuts from a transposed convolution's result, on all sides.
        around: padding of a convolution's input beforehand, before and after.
        extra: rows and columns that a transposed convolution adds at the end.
        surplus: rows and columns that are dropped from its result.
    """

    inside: int
    around: tuple[int, int] = (0, 0)
    extra: int = 0
    surplus: int = 0


def _padding(geometry: ConvGeometry) -> _Padding:
    w = geometry.window
    if w.pad_before == w.pad_after:
        return _Padding(w.pad_before)
    if not geometry.transposed:
        return _Padding(0, (w.pad_before, w.pad_after))
    return _Padding(
        w.pad_before,
        extra=max(w.pad_before - w.pad_after, 0),
        surplus=max(w.pad_after - w.pad_before, 0),
    )


def _padded(x: Tensor, around: tuple[int, int]) -> Tensor:
    """A feature map as ATen sees it, (N, C, H, W), padded; F.pad would copy even for no padding."""
    x = x.permute(0, 3, 1, 2)
    return F.pad(x, around * 2) if any(around) else x


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Compute a layer's linear part, with its bias."""
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if geometry.flat:
        return F.linear(x.flatten(1), weight, bias)[:, None, None]
    p, stride = _padding(geometry), [geometry.window.stride] * 2
    y: Tensor = torch.ops.aten.convolution(
        _padded(x, p.around), weight, bias, stride, [p.inside] * 2, [1, 1],
        geometry.transposed, [p.extra] * 2, 1,
    )  # fmt: skip
    height, width = geometry.output_size
    return y[..., :height, :width].permute(0, 2, 3, 1).contiguous()


def gradients(
    x: Tensor,
    dy: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    *,
    of_input: bool = False,
    of_weight: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of a layer's input and weight.

    Args:
        x: the input; for its own gradient alone, only shape and dtype matter.
        dy: the gradient of the layer's result, of x's dtype.
        weight: the layer's.
        geometry: the layer's.
        of_input: whether to compute x's gradient.
        of_weight: whether to compute the weight's.

    Returns:
        dx as x or None; and dw in the weight's shape and dtype or None.
    """
    cast = weight.to(dy.dtype)
    if geometry.flat:
        rows, out = dy.flatten(1), None
        if of_weight:
            out = (rows.t() @ x.flatten(1)).to(weight.dtype)
        return (rows @ cast).view(x.shape) if of_input else None, out
    p, stride = _padding(geometry), [geometry.window.stride] * 2
    dx, dw, _ = torch.ops.aten.convolution_backward(
        _padded(dy, (0, p.surplus)),
        _padded(x, p.around), cast, None, stride, [p.inside] * 2, [1, 1],
        geometry.transposed, [p.extra] * 2, 1, [of_input, of_weight, False],
    )  # fmt: skip
    if of_input:
        front, (_, height, width, _) = p.around[0], x.shape
        cut = dx[..., front : front + height, front : front + width]
        dx = cut.permute(0, 2, 3, 1).contiguous()
    return dx if of_input else None, dw.to(weight.dtype) if of_weight else None
