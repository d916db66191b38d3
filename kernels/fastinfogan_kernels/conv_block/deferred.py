"""Feature maps as blocks pass them on: raw results, activated by the kernel that loads them.

Feature maps are (N, height, width, channels), contiguous; a row of features is a 1x1 map. A block
passes on its raw result y and `params`, fp32 (groups, 3, features): scale, shift and mean, from
which the next kernel forms act(scale * y + shift) while loading. Without batch norm `params` is
None.

`features` are a map's channels, or for a fully connected layer that forms a map, all its pixels and
channels.
"""

from typing import NamedTuple

from torch import Tensor

from fastinfogan_kernels.runtime.lang import tl, triton

ACTIVATIONS = ("none", "leaky_relu", "sigmoid", "tanh")
"""Their indices are the numbers by which kernels know them."""
PLAIN, ACTIVATE, GRADIENT = 0, 1, 2
"""The prologues of `implicit_gemm`."""


class Deferred(NamedTuple):
    """A feature map whose values are formed while loading.

    Attributes:
        x: the map in memory: a block's raw y, or g where a gradient is formed.
        params: fp32 (groups, 3, features): scale, shift, mean; or A, B, C if `y` is given.
        slope: of the leaky ReLU formed while loading; 1 for none, 0 for ReLU.
        y: the map beside x when A * x + B * y + C is formed.
    """

    x: Tensor
    params: Tensor | None = None
    slope: float = 1.0
    y: Tensor | None = None

    @property
    def prologue(self) -> int:
        """The prologue that forms it: PLAIN, ACTIVATE or GRADIENT."""
        if self.y is not None:
            return GRADIENT
        return PLAIN if self.params is None and self.slope == 1.0 else ACTIVATE

    @property
    def features(self) -> int:
        """Features that the parameters have, or the channels."""
        return self.x.shape[3] if self.params is None else self.params.shape[2]

    @property
    def per_pixel(self) -> bool:
        """Whether each pixel has parameters of its own."""
        return self.x.shape[1] * self.x.shape[2] > 1 and self.features != self.x.shape[3]

    @property
    def bytes_per_value(self) -> int:
        """Bytes that a kernel loads, and holds in flight, for one value."""
        beside = 0 if self.y is None else self.y.element_size()
        return self.x.element_size() + beside + (8 if self.per_pixel else 0)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that are read to load it."""
        return self.x, self.y, self.params


class TileStatistics(NamedTuple):
    """Two numbers per tile and column of a feature map, to be merged.

    Attributes:
        data: fp32 (groups, tiles, 2, columns).
        tile_rows: rows of a whole tile.
        row_tiles: tiles of a phase.
        rows: rows of a phase.
    """

    data: Tensor
    tile_rows: int
    row_tiles: int
    rows: int


@triton.jit
def leaky_relu(z, SLOPE: tl.constexpr):
    """Apply leaky ReLU; NaN stays NaN and -inf times slope 0 does not become NaN."""
    if SLOPE == 0.0:
        out = tl.where(z <= 0.0, 0.0, z)
    elif SLOPE == 1.0:
        out = z
    else:
        out = tl.where(z <= 0.0, z * SLOPE, z)
    return out


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """Apply one of `ACTIVATIONS`, in fp32."""
    if ACTIVATION == 1:
        z = leaky_relu(z, SLOPE)
    elif ACTIVATION == 2:
        z = tl.sigmoid(z)
    elif ACTIVATION == 3:
        z = 2.0 * tl.sigmoid(2.0 * z) - 1.0
    return z
