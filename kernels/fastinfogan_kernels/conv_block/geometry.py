"""Where a map's taps lie: convolution, transposed convolution and fully connected as one thing.

Every map here is a gather: output position (p, q) sums, over taps (r, s) of the window, a weight
matrix times the input at a position that depends on both. There are two kinds of gather:

    direct      input row = S * p - pad + r                        a convolution with stride S
    transposed  output row = S * i + phase, tap r = r0 + S * t,    a transposed convolution with
                input row = i + o - t                              stride S: S * S dense phases
                with r0 = (phase + pad) mod S, o = (phase + pad - r0) / S

The data gradient of the one is the other, over the same weights with input and output channels
exchanged. A fully connected layer is the direct gather of a 1x1 window on a 1x1 map.
"""

from dataclasses import dataclass

from torch import Tensor

from fastinfogan_kernels.errors import InputError


@dataclass(frozen=True)
class Window:
    """A window sliding over maps of a given size.

    Attributes:
        height: of the larger map, a convolution's input or a transposed convolution's output.
        width: likewise.
        kernel: side of the window.
        stride: its step.
        before: padding in front.
        after: padding behind.
    """

    height: int
    width: int
    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        if min(self.kernel, self.stride, self.height, self.width) < 1:
            raise InputError(f"a window needs sides and a stride of 1 or more: {self}")
        if min(self.rows, self.columns) < 1:
            raise InputError(f"the window does not fit into its map: {self}")

    @property
    def rows(self) -> int:
        """Height of the smaller map."""
        return (self.height + self.before + self.after - self.kernel) // self.stride + 1

    @property
    def columns(self) -> int:
        """Width of the smaller map."""
        return (self.width + self.before + self.after - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class ConvGeometry:
    """One of the two gathers over a window, as the kernels take it.

    Attributes:
        window: the window.
        transposed: which of the two.
        flat: a fully connected layer, which takes maps as rows.
    """

    window: Window
    transposed: bool
    flat: bool = False

    @property
    def reversed(self) -> "ConvGeometry":
        """The gather of the data gradient."""
        return ConvGeometry(self.window, not self.transposed)

    @property
    def source(self) -> tuple[int, int]:
        """Height and width of the map read."""
        w = self.window
        return (w.rows, w.columns) if self.transposed else (w.height, w.width)

    @property
    def result(self) -> tuple[int, int]:
        """Height and width of the map written."""
        w = self.window
        return (w.height, w.width) if self.transposed else (w.rows, w.columns)

    @property
    def phases(self) -> int:
        """How many phases a row of the result has."""
        return self.window.stride if self.transposed else 1

    @property
    def taps(self) -> int:
        """Taps along an axis in each phase; with odd windows some phases leave the last unused."""
        return -(-self.window.kernel // self.phases)

    @property
    def grid(self) -> tuple[int, int]:
        """Positions of one phase: rows and columns."""
        height, width = self.result
        return -(-height // self.phases), -(-width // self.phases)


LINEAR = ConvGeometry(Window(1, 1), transposed=False, flat=True)
"""The gather of a fully connected layer."""


def weight_strides(weight: Tensor, *, transposed: bool, swapped: bool) -> tuple[int, int, int, int]:
    """Strides of a weight as (input channel, output channel, tap row, tap column) of a gather.

    Args:
        weight: (Cout, Cin, k, k) of a convolution, (Cin, Cout, k, k) of a transposed one, or
            (Cout, Cin) of a fully connected layer; any strides.
        transposed: the weight's own layer is a transposed convolution.
        swapped: the gather is the data gradient, which reads Cout and gives Cin.
    """
    first, second = weight.stride(0), weight.stride(1)
    into, out_of = (first, second) if transposed else (second, first)
    if swapped:
        into, out_of = out_of, into
    row, column = (weight.stride(2), weight.stride(3)) if weight.dim() == 4 else (0, 0)
    return into, out_of, row, column
