"""A chain of blocks as ONE node of autograd, and the operations that it is made of.

Across separate nodes autograd would have to write every dy = A * g + B * y + C out; inside one node
the next kernels form it while loading. The operations are registered with torch.library, so that
torch.compile sees each as one call; the engine may call them on its own.

Forward, a block is one launch: the product, its statistics and what becomes of them. Backward it is
two: the weight gradient, and the data gradient with all that the block before needs of it. At the
chain's end one pass writes the activation out, and one takes its gradient in.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block import candidates, elementwise, sync_batch_norm
from fastinfogan_kernels.conv_block.bn_stats import Backward, Forward, merge_tiles
from fastinfogan_kernels.conv_block.deferred import ACTIVATIONS, Deferred
from fastinfogan_kernels.conv_block.geometry import ConvGeometry, Window
from fastinfogan_kernels.conv_block.image_conv import Images, image_block
from fastinfogan_kernels.conv_block.image_conv import (
    image_weight_gradient as image_weight_gradient_of,
)
from fastinfogan_kernels.conv_block.implicit_gemm import Epilogue
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.runtime.registry import register

ActivationName = Literal["none", "rectifier", "sigmoid", "tanh"]
WINDOW_FIELDS = ("height", "width", "kernel", "stride", "before", "after")


@dataclass(frozen=True)
class Layer:
    """What a block is, for input maps of one size.

    Attributes:
        gather: its window and the way over it; `LINEAR` for a fully connected layer.
        norm: whether batch norm follows.
        activation: behind it; all but the last layer of a chain have "none" or "rectifier".
        slope: of "rectifier": 0 for ReLU, 1 for none.
        eps: batch norm's.
        momentum: batch norm's.
        shape: (height, width, channels) of the map that a fully connected layer's features form.

    Raises:
        InputError: the slope is negative or not finite.
    """

    gather: ConvGeometry
    norm: bool
    activation: ActivationName = "rectifier"
    slope: float = 0.1
    eps: float = 1e-5
    momentum: float = 0.1
    shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.slope < math.inf:
            raise InputError(
                f"the slope of a leaky ReLU is finite and not negative, not {self.slope}"
            )

    @property
    def flat(self) -> bool:
        """Whether it is a fully connected layer."""
        return self.gather.flat

    @property
    def loaded_slope(self) -> float:
        """The slope that whoever loads its y applies."""
        return self.slope if self.activation == "rectifier" else 1.0

    @property
    def window(self) -> list[int]:
        """The window as an operator's schema takes it."""
        return [getattr(self.gather.window, field) for field in WINDOW_FIELDS]


class LayerTensors(NamedTuple):
    """A layer's tensors.

    Attributes:
        weight: in torch's layout, any strides.
        bias: (channels,) or None.
        gamma: (features,) or None without batch norm.
        beta: likewise.
        running_mean: fp32 (features,) or None; updated in place.
        running_var: likewise.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None


def _gather(window: list[int], transposed: bool) -> ConvGeometry:
    return ConvGeometry(Window(*window), transposed)


@register("norm_block", mutates_args=("running_mean", "running_var"))
def norm_block(
    x: Tensor, x_params: Tensor | None, x_slope: float, weight: Tensor, bias: Tensor | None,
    gamma: Tensor, beta: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    window: list[int], transposed: bool, groups: int, eps: float, momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return a block's y, and batch norm's params and rstd, in one launch."""
    norm = Forward.of(gamma, beta, running_mean, running_var, groups, eps, momentum)
    y, _ = candidates.multiply(
        Deferred(x, x_params, x_slope), weight, _gather(window, transposed), groups,
        Epilogue(bias, into=norm),
    )  # fmt: skip
    return y, norm.params, norm.rstd


def norm_block_across_ranks(
    operand: Deferred,
    t: LayerTensors,
    layer: Layer,
    groups: int,
    process_group: sync_batch_norm.Group,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `norm_block`, with the statistics of all ranks' batches; torch.compile stops here."""
    assert t.gamma is not None
    assert t.beta is not None
    with torch.cuda.device_of(operand.x):  # type: ignore[no-untyped-call]
        y, tiles = candidates.multiply(
            operand, t.weight, layer.gather, groups, Epilogue(t.bias, tiles=True)
        )
        assert tiles is not None
        count = y.numel() // t.gamma.shape[0] // groups
        tiles = merge_tiles(tiles, count)
        tiles = tiles._replace(data=sync_batch_norm.gather_tiles(tiles.data, process_group))
        norm = Forward.of(
            t.gamma, t.beta, t.running_mean, t.running_var, groups, layer.eps, layer.momentum
        )
        norm.finalize(tiles, count * sync_batch_norm.size(process_group))
    return y, norm.params, norm.rstd


@register("plain_block")
def plain_block(
    x: Tensor, x_params: Tensor | None, x_slope: float, weight: Tensor, bias: Tensor | None,
    window: list[int], transposed: bool, groups: int, activation: str, slope: float,
) -> Tensor:  # fmt: skip
    """Return act(product + bias) of a block without batch norm."""
    return candidates.multiply(
        Deferred(x, x_params, x_slope), weight, _gather(window, transposed), groups,
        Epilogue(bias, activation, slope),
    )[0]  # fmt: skip


@register("materialize")
def materialize(
    y: Tensor, params: Tensor | None, groups: int, activation: str, slope: float
) -> Tensor:
    """Write act(scale * y + shift) out."""
    return elementwise.materialize(Deferred(y, params, slope), groups, activation)


def _wanted(
    gamma: Tensor | None, params: Tensor | None, rstd: Tensor | None, bias: Tensor | None
) -> Backward | None:
    if gamma is not None:
        assert params is not None
        assert rstd is not None
        return Backward.of_norm(gamma, params, rstd)
    return Backward.of_bias(bias) if bias is not None else None


@register("act_backward_reduce")
def act_backward_reduce(
    dout: Tensor, y: Tensor, params: Tensor | None, groups: int, activation: str, slope: float,
    gamma: Tensor | None, rstd: Tensor | None, bias: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Return g = dout * act'(z), and what its sums give.

    That is dy's coefficients, dgamma and dbeta with gamma and rstd; the bias' gradient with a bias;
    with neither the tiles' sums, fp32 (groups, tiles, 2, features).
    """
    into = _wanted(gamma, params, rstd, bias)
    g, tiles = elementwise.act_backward_reduce(
        dout, Deferred(y, params, slope), groups, activation, into
    )
    return g, [tiles.data] if into is None else into.results


def norm_gradient_across_ranks(
    sums: Tensor,
    count: int,
    gamma: Tensor,
    params: Tensor,
    rstd: Tensor,
    process_group: sync_batch_norm.Group,
) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients by all ranks' batches; dgamma and dbeta by this rank's."""
    own, of_all = (Backward.of_norm(gamma, params, rstd) for _ in range(2))
    groups, many, _, columns = sums.shape
    parts = sums.view(groups, many, 2, columns // len(gamma), len(gamma))
    sums = parts.sum((1, 3)).unsqueeze(1)  # all that other ranks need to know of them
    with torch.cuda.device_of(sums):  # type: ignore[no-untyped-call]
        own.finalize(sums, count)
        of_all.finalize(
            sync_batch_norm.gather_tiles(sums, process_group),
            count * sync_batch_norm.size(process_group),
        )
    return of_all.results[0], own.results[1], own.results[2]


@register("weight_gradient")
def weight_gradient(
    x: Tensor, x_params: Tensor | None, x_slope: float, g: Tensor, y: Tensor | None,
    coefficients: Tensor | None, weight: Tensor, window: list[int], transposed: bool,
    groups: int,
) -> Tensor:  # fmt: skip
    """Return the gradient of a layer's weight."""
    return candidates.weight_gradient(
        Deferred(x, x_params, x_slope), Deferred(g, coefficients, 1.0, y), weight,
        _gather(window, transposed), groups,
    )  # fmt: skip


@register("data_gradient")
def data_gradient(
    g: Tensor, y: Tensor | None, coefficients: Tensor | None, weight: Tensor,
    before: Tensor | None, before_params: Tensor | None, before_slope: float,
    before_gamma: Tensor | None, before_rstd: Tensor | None, before_bias: Tensor | None,
    window: list[int], transposed: bool, groups: int,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Return the gradient of a layer's input, and nothing else without a previous block.

    With one it is the gradient of that block's result in front of the activation; and of that block
    what `act_backward_reduce` returns.
    """
    gradient = Deferred(g, coefficients, 1.0, y)
    gather = _gather(window, transposed)
    if before is None:
        return candidates.multiply(gradient, weight, gather, groups, backward=True)[0], []
    to = Deferred(before, before_params, before_slope)
    into = _wanted(before_gamma, before_params, before_rstd, before_bias)
    if to.per_pixel:
        # Parameters of each pixel: its sums run over images alone, which no tile of a product sees.
        dx, _ = candidates.multiply(gradient, weight, gather, groups, backward=True)
        dx, tiles = elementwise.act_backward_reduce(dx, to, groups, into=into)
    else:
        dx, found = candidates.multiply(
            gradient,
            weight,
            gather,
            groups,
            Epilogue(before=to, tiles=True, into=into),
            backward=True,
        )
        assert found is not None
        tiles = found
    return dx, [tiles.data] if into is None else into.results


@register("image_norm_block", mutates_args=("running_mean", "running_var"))
def image_norm_block(
    images: Tensor, index: Tensor | None, scale: float, shift: float, dtype: torch.dtype,
    weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor,
    running_mean: Tensor | None, running_var: Tensor | None,
    window: list[int], groups: int, eps: float, momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `norm_block`, of images."""
    norm = Forward.of(gamma, beta, running_mean, running_var, groups, eps, momentum)
    y = image_block(
        Images(images, index, scale, shift, dtype), weight, bias, Window(*window), groups,
        into=norm,
    )  # fmt: skip
    return y, norm.params, norm.rstd


@register("image_plain_block")
def image_plain_block(
    images: Tensor, index: Tensor | None, scale: float, shift: float, dtype: torch.dtype,
    weight: Tensor, bias: Tensor | None, window: list[int], groups: int, activation: str,
    slope: float,
) -> Tensor:  # fmt: skip
    """As `plain_block`, of images."""
    return image_block(
        Images(images, index, scale, shift, dtype), weight, bias, Window(*window), groups,
        activation=ACTIVATIONS.index(activation), slope=slope,
    )  # fmt: skip


@register("image_weight_gradient")
def image_weight_gradient(
    images: Tensor, index: Tensor | None, scale: float, shift: float, g: Tensor, y: Tensor | None,
    coefficients: Tensor | None, weight: Tensor, window: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """As `weight_gradient`, of images."""
    return image_weight_gradient_of(
        Images(images, index, scale, shift, g.dtype), g, y, coefficients, weight, Window(*window),
        groups,
    )  # fmt: skip
