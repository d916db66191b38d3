"""A chain as data: the geometry of its convolutions, also in ATen's terms, layers, tensors, input.

Convolution, transposed convolution and fully connected layer are one implicit GEMM: output position
(p, q) sums, over the taps (r, s) of a filter, a weight matrix times the input at a position that
depends on both. There are two index maps:

    direct      input row = S * p - pad + r                        a convolution with stride S
    transposed  output row = S * i + phase, tap r = r0 + S * t,    a transposed convolution with
                input row = i + o - t                              stride S: S * S dense phases
                with r0 = (phase + pad) mod S, o = (phase + pad - r0) / S

The data gradient of the one is the other, over the same weights with input and output channels
exchanged. A fully connected layer is the direct one of a 1x1 window on a 1x1 feature map.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup
from fastinfogan_kernels.errors import InputError


@dataclass(frozen=True)
class Window:
    """A filter window sliding over feature maps of a given size.

    Attributes:
        height: of the larger map, a convolution's input or a transposed convolution's output.
        width: likewise.
        kernel: side of the window.
        stride: step of the window.
        pad_before: padding above and to the left.
        pad_after: padding below and to the right.

    Raises:
        InputError: a size is below 1, or the window does not fit.
    """

    height: int
    width: int
    kernel: int = 1
    stride: int = 1
    pad_before: int = 0
    pad_after: int = 0

    def __post_init__(self) -> None:
        if min(self.kernel, self.stride, self.height, self.width) < 1:
            raise InputError(f"a window needs sides and a stride of 1 or more: {self}")
        if min(self.rows, self.columns) < 1:
            raise InputError(f"the window does not fit into its feature map: {self}")

    @property
    def rows(self) -> int:
        """Height of the smaller map."""
        return (self.height + self.pad_before + self.pad_after - self.kernel) // self.stride + 1

    @property
    def columns(self) -> int:
        """Width of the smaller map."""
        return (self.width + self.pad_before + self.pad_after - self.kernel) // self.stride + 1

    @property
    def as_list(self) -> list[int]:
        """The fields, as an operation takes them."""
        pads = [self.pad_before, self.pad_after]
        return [self.height, self.width, self.kernel, self.stride, *pads]


@dataclass(frozen=True)
class ConvGeometry:
    """One of the two index maps over a window.

    Attributes:
        window: the window.
        transposed: which of the two.
        flat: a fully connected layer, which reads feature maps as rows.
    """

    window: Window
    transposed: bool
    flat: bool = False

    @property
    def data_gradient(self) -> "ConvGeometry":
        """The index map of the data gradient."""
        return ConvGeometry(self.window, not self.transposed)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input."""
        w = self.window
        return (w.rows, w.columns) if self.transposed else (w.height, w.width)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        w = self.window
        return (w.height, w.width) if self.transposed else (w.rows, w.columns)

    @property
    def phases(self) -> int:
        """Phases along an axis of the output."""
        return self.window.stride if self.transposed else 1

    @property
    def taps(self) -> int:
        """Taps along an axis in each phase; with odd windows some phases leave the last unused."""
        return -(-self.window.kernel // self.phases)

    @property
    def grid(self) -> tuple[int, int]:
        """Positions of one phase: rows and columns."""
        height, width = self.output_size
        return -(-height // self.phases), -(-width // self.phases)


LINEAR = ConvGeometry(Window(1, 1), transposed=False, flat=True)
"""A fully connected layer."""


def weight_strides(
    weight: Tensor, *, transposed: bool, data_gradient: bool
) -> tuple[int, int, int, int]:
    """Return a weight's strides as (input channel, output channel, tap row, tap column).

    Args:
        weight: (Cout, Cin, k, k) of a convolution, (Cin, Cout, k, k) of a transposed one, or
            (Cout, Cin) of a fully connected layer; any strides.
        transposed: whether the weight's own layer is a transposed convolution.
        data_gradient: whether it is read for the data gradient, whose input channels are Cout.
    """
    first, second = weight.stride(0), weight.stride(1)
    in_stride, out_stride = (first, second) if transposed else (second, first)
    if data_gradient:
        in_stride, out_stride = out_stride, in_stride
    row, column = (weight.stride(2), weight.stride(3)) if weight.dim() == 4 else (0, 0)
    return in_stride, out_stride, row, column


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
    """View a feature map as ATen does, (N, C, H, W), padded; F.pad would copy even for none."""
    x = x.permute(0, 3, 1, 2)
    return F.pad(x, around * 2) if any(around) else x


def aten_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """Compute a layer's linear part, with its bias, by ATen.

    Args:
        x: feature maps (N, height, width, channels), contiguous, which ATen sees as channels_last
            memory; rows of features are 1x1 maps.
        weight: in torch's layout, of any dtype; the computation is in x's.
        bias: (channels,) or None.
        geometry: the layer's.
    """
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


def aten_gradients(
    x: Tensor,
    dy: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    *,
    of_input: bool = False,
    of_weight: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of a layer's input and weight by ATen, see `aten_convolution`.

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


LayerActivation = Literal["none", "leaky_relu", "sigmoid", "tanh"]


@dataclass(frozen=True)
class Layer:
    """A block, for inputs of one size.

    Attributes:
        geometry: of its convolution; `LINEAR` for a fully connected layer.
        norm: whether batch norm follows.
        activation: the last step; all but the last layer of a chain have "none" or "leaky_relu".
        slope: of "leaky_relu": 0 for ReLU, 1 for none.
        eps: added to batch norm's variance.
        momentum: weight of the new statistics in batch norm's running ones.
        shape: (height, width, channels) into which a fully connected layer's features are reshaped.

    Raises:
        InputError: the slope is negative or not finite.
    """

    geometry: ConvGeometry
    norm: bool
    activation: LayerActivation = "leaky_relu"
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
        return self.geometry.flat

    @property
    def loaded_slope(self) -> float:
        """The slope that the next layer applies while it loads this one's y."""
        return self.slope if self.activation == "leaky_relu" else 1.0


class LayerTensors(NamedTuple):
    """A layer's tensors.

    Attributes:
        weight: in torch's layout, any strides.
        bias: (channels,) or None.
        gamma: (features,) or None without batch norm.
        beta: likewise.
        running_mean: (features,) or None; updated in place.
        running_var: likewise.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None


@dataclass(frozen=True)
class Images:
    """Images as they lie in memory, and what turns them into a network's input.

    Attributes:
        data: uint8 or floating point (M, height, width, channels), contiguous.
        index: int64 (N,): which images make the batch; None for all of them.
        scale: by which a pixel is multiplied.
        shift: what is added then.
        dtype: of the feature maps computed from it.

    Raises:
        InputError: `data` or `index` has another dtype, shape or layout.
    """

    data: Tensor
    index: Tensor | None = None
    scale: float = 1.0
    shift: float = 0.0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.data.dim() != 4 or not self.data.is_contiguous():
            raise InputError("images are (M, height, width, channels) and contiguous")
        if self.index is not None and (self.index.dtype != torch.int64 or self.index.dim() != 1):
            raise InputError(
                f"the index of images is int64 in one dimension, not {self.index.dtype} in "
                f"{self.index.dim()}"
            )

    @property
    def count(self) -> int:
        """N, the images in the batch."""
        return len(self.data) if self.index is None else len(self.index)

    def materialize(self) -> Tensor:
        """Return the input written out: (N, C, H, W), channels_last."""
        data = self.data if self.index is None else self.data.index_select(0, self.index)
        wide = data.to(torch.promote_types(self.dtype, torch.float32))
        scaled = wide * self.scale + self.shift if self._scales else data
        return scaled.to(self.dtype).permute(0, 3, 1, 2)

    @property
    def _scales(self) -> bool:
        return (self.scale, self.shift) != (1.0, 0.0) or not self.data.is_floating_point()


@dataclass(frozen=True)
class ChainInput:
    """How a chain reads its input tensor, and with which processes it shares statistics.

    Attributes:
        dtype: of the feature maps computed from the input.
        process_group: of processes with which statistics are shared.
        index: which images of the input make the batch, or None for all of it.
        scale: by which pixels are multiplied while loading.
        shift: what is added then.
    """

    dtype: torch.dtype
    process_group: ProcessGroup = None
    index: Tensor | None = None
    scale: float = 1.0
    shift: float = 0.0
