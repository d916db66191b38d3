"""A chain of blocks as ONE node of autograd, and the operations that it is made of.

Across separate nodes autograd would have to write every dy = A * g + B * y + C out; inside one node
the next kernels form it while loading. The operations are registered with torch.library, so that
torch.compile sees each as one call; the engine may call them on its own.

Forward, a block: product (+ tiles' statistics), finalize. Backward, a block: finalize, weight
gradient, data gradient (+ tiles' sums of the block before). At the chain's end one pass writes the
activation out, and one takes its gradient in.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastinfogan.errors import InputError
from fastinfogan.kernels import candidates, pointwise, ranks
from fastinfogan.kernels.geometry import Gather, Window
from fastinfogan.kernels.images import Images, image_block
from fastinfogan.kernels.images import image_weight_gradient as image_weight_gradient_of
from fastinfogan.kernels.library import register
from fastinfogan.kernels.maps import ACTIVATIONS, Deferred
from fastinfogan.kernels.statistics import Normalisation, finalize_backward, finalize_forward

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

    gather: Gather
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


def _gather(window: list[int], transposed: bool) -> Gather:
    return Gather(Window(*window), transposed)


def _norm_block(
    x: Tensor, x_params: Tensor | None, x_slope: float, weight: Tensor, bias: Tensor | None,
    gamma: Tensor, beta: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    window: list[int], transposed: bool, groups: int, eps: float, momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, tiles = candidates.multiply(
        Deferred(x, x_params, x_slope), weight, _gather(window, transposed), groups,
        bias=bias, tiles=True,
    )  # fmt: skip
    assert tiles is not None
    count = y.numel() // gamma.shape[0] // groups
    norm = finalize_forward(tiles, count, gamma, beta, running_mean, running_var, eps, momentum)
    return y, norm.params, norm.rstd


norm_block = register(
    "norm_block(Tensor x, Tensor? x_params, float x_slope, Tensor weight, Tensor? bias, "
    "Tensor gamma, Tensor beta, Tensor(a!)? running_mean, Tensor(b!)? running_var, int[] window, "
    "bool transposed, int groups, float eps, float momentum) -> (Tensor, Tensor, Tensor)",
    _norm_block,
)


def norm_block_across_ranks(
    operand: Deferred, t: LayerTensors, layer: Layer, groups: int, ranks_group: ranks.Group
) -> tuple[Tensor, Tensor, Tensor]:
    """As `norm_block`, with the statistics of all ranks' batches; torch.compile stops here."""
    assert t.gamma is not None
    assert t.beta is not None
    with torch.cuda.device_of(operand.x):  # type: ignore[no-untyped-call]
        y, tiles = candidates.multiply(
            operand, t.weight, layer.gather, groups, bias=t.bias, tiles=True
        )
        assert tiles is not None
        tiles = tiles._replace(data=ranks.gather_tiles(tiles.data, ranks_group))
        count = y.numel() // t.gamma.shape[0] // groups * ranks.size(ranks_group)
        norm = finalize_forward(
            tiles, count, t.gamma, t.beta, t.running_mean, t.running_var, layer.eps, layer.momentum
        )
    return y, norm.params, norm.rstd


def _plain_block(
    x: Tensor, x_params: Tensor | None, x_slope: float, weight: Tensor, bias: Tensor | None,
    window: list[int], transposed: bool, groups: int, activation: str, slope: float,
) -> Tensor:  # fmt: skip
    return candidates.multiply(
        Deferred(x, x_params, x_slope), weight, _gather(window, transposed), groups,
        bias=bias, activation=activation, slope=slope,
    )[0]  # fmt: skip


plain_block = register(
    "plain_block(Tensor x, Tensor? x_params, float x_slope, Tensor weight, Tensor? bias, "
    "int[] window, bool transposed, int groups, str activation, float slope) -> Tensor",
    _plain_block,
)


def _materialize(
    y: Tensor, params: Tensor | None, groups: int, activation: str, slope: float
) -> Tensor:
    return pointwise.materialize(Deferred(y, params, slope), groups, activation)


materialize = register(
    "materialize(Tensor y, Tensor? params, int groups, str activation, float slope) -> Tensor",
    _materialize,
)


def _enter_gradient(
    dout: Tensor, y: Tensor, params: Tensor | None, groups: int, activation: str, slope: float
) -> tuple[Tensor, Tensor]:
    return pointwise.enter_gradient(dout, Deferred(y, params, slope), groups, activation)


enter_gradient = register(
    "enter_gradient(Tensor dout, Tensor y, Tensor? params, int groups, str activation, "
    "float slope) -> (Tensor, Tensor)",
    _enter_gradient,
)


def _norm_gradient(
    sums: Tensor, count: int, gamma: Tensor, params: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    coefficients, dgamma, dbeta = finalize_backward(
        sums, count, gamma, Normalisation(params, rstd), gamma
    )
    assert coefficients is not None
    assert dgamma is not None
    return coefficients, dgamma, dbeta


norm_gradient = register(
    "norm_gradient(Tensor sums, int count, Tensor gamma, Tensor params, Tensor rstd) "
    "-> (Tensor, Tensor, Tensor)",
    _norm_gradient,
)


def _bias_gradient(sums: Tensor, bias: Tensor) -> Tensor:
    return finalize_backward(sums, 1, None, None, bias)[2]


bias_gradient = register("bias_gradient(Tensor sums, Tensor bias) -> Tensor", _bias_gradient)


def _weight_gradient(
    x: Tensor, x_params: Tensor | None, x_slope: float, g: Tensor, y: Tensor | None,
    coefficients: Tensor | None, weight: Tensor, window: list[int], transposed: bool,
    groups: int,
) -> Tensor:  # fmt: skip
    return candidates.weight_gradient(
        Deferred(x, x_params, x_slope), Deferred(g, coefficients, 1.0, y), weight,
        _gather(window, transposed), groups,
    )  # fmt: skip


weight_gradient = register(
    "weight_gradient(Tensor x, Tensor? x_params, float x_slope, Tensor g, Tensor? y, "
    "Tensor? coefficients, Tensor weight, int[] window, bool transposed, int groups) -> Tensor",
    _weight_gradient,
)


def _data_gradient(
    g: Tensor, y: Tensor | None, coefficients: Tensor | None, weight: Tensor,
    before: Tensor | None, before_params: Tensor | None, before_slope: float,
    window: list[int], transposed: bool, groups: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    gradient = Deferred(g, coefficients, 1.0, y)
    gather = _gather(window, transposed)
    to = Deferred(before, before_params, before_slope) if before is not None else None
    if to is None or to.per_pixel:
        # Parameters of each pixel: its sums run over images alone, which no tile of a product sees.
        dx, _ = candidates.multiply(gradient, weight, gather, groups, backward=True)
        if to is None:
            return dx, dx.new_empty(0, dtype=torch.float32)
        return pointwise.enter_gradient(dx, to, groups)
    dx, tiles = candidates.multiply(
        gradient, weight, gather, groups, backward=True, before=to, tiles=True,
    )  # fmt: skip
    assert tiles is not None
    return dx, tiles.data


data_gradient = register(
    "data_gradient(Tensor g, Tensor? y, Tensor? coefficients, Tensor weight, Tensor? before, "
    "Tensor? before_params, float before_slope, int[] window, bool transposed, int groups) "
    "-> (Tensor, Tensor)",
    _data_gradient,
)


def _image_norm_block(
    images: Tensor, index: Tensor | None, scale: float, shift: float, dtype: torch.dtype,
    weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor,
    running_mean: Tensor | None, running_var: Tensor | None,
    window: list[int], groups: int, eps: float, momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, tiles = image_block(
        Images(images, index, scale, shift, dtype), weight, bias, Window(*window), groups,
        tiles=True,
    )  # fmt: skip
    assert tiles is not None
    count = y.numel() // gamma.shape[0] // groups
    norm = finalize_forward(tiles, count, gamma, beta, running_mean, running_var, eps, momentum)
    return y, norm.params, norm.rstd


image_norm_block = register(
    "image_norm_block(Tensor images, Tensor? index, float scale, float shift, ScalarType dtype, "
    "Tensor weight, Tensor? bias, Tensor gamma, Tensor beta, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, int[] window, int groups, float eps, float momentum) "
    "-> (Tensor, Tensor, Tensor)",
    _image_norm_block,
)


def _image_plain_block(
    images: Tensor, index: Tensor | None, scale: float, shift: float, dtype: torch.dtype,
    weight: Tensor, bias: Tensor | None, window: list[int], groups: int, activation: str,
    slope: float,
) -> Tensor:  # fmt: skip
    return image_block(
        Images(images, index, scale, shift, dtype), weight, bias, Window(*window), groups,
        activation=ACTIVATIONS.index(activation), slope=slope,
    )[0]  # fmt: skip


image_plain_block = register(
    "image_plain_block(Tensor images, Tensor? index, float scale, float shift, ScalarType dtype, "
    "Tensor weight, Tensor? bias, int[] window, int groups, str activation, float slope) -> Tensor",
    _image_plain_block,
)


def _image_weight_gradient(
    images: Tensor, index: Tensor | None, scale: float, shift: float, g: Tensor, y: Tensor | None,
    coefficients: Tensor | None, weight: Tensor, window: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return image_weight_gradient_of(
        Images(images, index, scale, shift, g.dtype), g, y, coefficients, weight, Window(*window),
        groups,
    )  # fmt: skip


image_weight_gradient = register(
    "image_weight_gradient(Tensor images, Tensor? index, float scale, float shift, Tensor g, "
    "Tensor? y, Tensor? coefficients, Tensor weight, int[] window, int groups) -> Tensor",
    _image_weight_gradient,
)
