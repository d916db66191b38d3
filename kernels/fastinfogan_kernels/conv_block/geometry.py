"""Index maps: convolution, transposed convolution and fully connected layer as one.

Each is an implicit GEMM: output position (p, q) sums, over the taps (r, s) of a filter, a weight
matrix times the input at a position that depends on both. There are two index maps:

    direct      input row = S * p - pad + r                        a convolution with stride S
    transposed  output row = S * i + phase, tap r = r0 + S * t,    a transposed convolution with
                input row = i + o - t                              stride S: S * S dense phases
                with r0 = (phase + pad) mod S, o = (phase + pad - r0) / S

The data gradient of the one is the other, over the same weights with input and output channels
exchanged. A fully connected layer is the direct one of a 1x1 window on a 1x1 feature map.
"""

from dataclasses import dataclass

from torch import Tensor

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
