"""Two ways to compute a product: our kernel, or ATen's convolution with our passes around it.

On large maps cuDNN's convolution may win by more than the passes over memory that it costs. The
launch table says which, per layer and pass; what it does not know goes to our kernel.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan.kernels import gather_gemm, pointwise
from fastinfogan.kernels.geometry import Gather
from fastinfogan.kernels.maps import Deferred, Tiles
from fastinfogan.kernels.statistics import Backward, Forward
from fastinfogan.kernels.tuning import choose
from fastinfogan.kernels.weight_gradient import weight_gradient as our_weight_gradient


def multiply(
    operand: Deferred,
    weight: Tensor,
    gather: Gather,
    groups: int,
    *,
    backward: bool = False,
    bias: Tensor | None = None,
    tiles: bool = False,
    activation: str = "none",
    slope: float = 1.0,
    before: Deferred | None = None,
    into: Forward | Backward | None = None,
) -> tuple[Tensor, Tiles | None]:
    """As `gather_gemm.multiply`, by the candidate that the launch table names."""
    chosen = choose("data_gradient" if backward else "forward", operand.x, weight, gather)
    if chosen.candidate == "gemm" or weight.dim() == 2:
        return gather_gemm.multiply(
            operand,
            weight,
            gather,
            groups,
            backward=backward,
            bias=bias,
            tiles=tiles,
            activation=activation,
            slope=slope,
            before=before,
            into=into,
            tile=chosen.tile,
        )
    if not backward:
        y = _convolve(operand.materialize(groups), weight, bias, gather)
        if activation != "none":
            return pointwise.materialize(Deferred(y, None, slope), groups, activation), None
        if not tiles and into is None:
            return y, None
        found = pointwise.tile_statistics(y, y.shape[3], groups)
        if isinstance(into, Forward):
            into.finalize(found, y.numel() // y.shape[3] // groups)
        return y, found
    images = operand.x.shape[0]
    channels = weight.shape[0 if gather.transposed else 1]
    shape = (images, *gather.source, channels)
    dx = _gradient_of(operand.materialize(groups), shape, None, weight, gather)
    if before is None:
        return dx, None
    back = into if isinstance(into, Backward) else None
    return pointwise.enter_gradient(dx, before, groups, into=back)


def weight_gradient(
    operand: Deferred, gradient: Deferred, weight: Tensor, gather: Gather, groups: int
) -> Tensor:
    """As `weight_gradient.weight_gradient`, by the candidate that the launch table names."""
    chosen = choose("weight_gradient", operand.x, weight, gather)
    if chosen.candidate == "gemm" or weight.dim() == 2:
        return our_weight_gradient(operand, gradient, weight, gather, groups, tile=chosen.tile)
    x = operand.materialize(groups)
    dy = gradient.materialize(groups)
    return _gradient_of(dy, tuple(x.shape), x, weight, gather).to(weight.dtype)


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


def _padding(gather: Gather) -> _Padding:
    w = gather.window
    if w.before == w.after:
        return _Padding(w.before)
    if not gather.transposed:
        return _Padding(0, (w.before, w.after))
    return _Padding(w.before, extra=max(w.before - w.after, 0), surplus=max(w.after - w.before, 0))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, gather: Gather) -> Tensor:
    """ATen's convolution of a map, to a map."""
    p, stride = _padding(gather), [gather.window.stride] * 2
    y: Tensor = torch.ops.aten.convolution(
        F.pad(x.permute(0, 3, 1, 2), p.around * 2), weight.to(x.dtype),
        None if bias is None else bias.to(x.dtype), stride, [p.inside] * 2, [1, 1],
        gather.transposed, [p.extra] * 2, 1,
    )  # fmt: skip
    height, width = gather.result
    return y[..., :height, :width].permute(0, 2, 3, 1).contiguous()


def _gradient_of(
    dy: Tensor, shape: tuple[int, ...], x: Tensor | None, weight: Tensor, gather: Gather
) -> Tensor:
    """ATen's backward: the weight's gradient if x is given, else that of an x of this shape."""
    p, stride = _padding(gather), [gather.window.stride] * 2
    wanted = [x is None, x is not None, False]
    source = dy.new_empty(shape) if x is None else x
    padded = F.pad(source.permute(0, 3, 1, 2), p.around * 2)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        F.pad(dy.permute(0, 3, 1, 2), (0, p.surplus) * 2), padded, weight.to(dy.dtype), None,
        stride, [p.inside] * 2, [1, 1], gather.transposed, [p.extra] * 2, 1, wanted,
    )  # fmt: skip
    if x is not None:
        gradient: Tensor = dw
        return gradient
    front = p.around[0]
    cut: Tensor = dx[..., front : front + shape[1], front : front + shape[2]]
    return cut.permute(0, 2, 3, 1).contiguous()
