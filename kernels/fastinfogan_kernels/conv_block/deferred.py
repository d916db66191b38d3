"""Maps, as blocks hand them to one another.

Maps are (N, height, width, channels), contiguous; a row of features is a 1x1 map. What a block
hands on is its raw map y and `params`, fp32 (groups, 3, features): scale, shift and mean, by which
whoever loads y forms act(scale * y + shift). Without batch norm `params` is None and y is all.

`features` are a map's channels, or for a fully connected layer that forms a map, all its pixels and
channels.
"""

from typing import NamedTuple

from torch import Tensor

ACTIVATIONS = ("none", "rectifier", "sigmoid", "tanh")
"""By the number that the kernels know them by."""
PLAIN, ACTIVATE, GRADIENT = 0, 1, 2
"""The prologues of `device.implicit_gemm`."""


class Deferred(NamedTuple):
    """A map that is not written out: whoever loads it forms its values.

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

    def materialize(self, groups: int) -> Tensor:
        """Write the values out, for whoever is not one of our kernels; x itself if it has them."""
        from fastinfogan_kernels.conv_block import elementwise

        if self.prologue == PLAIN:
            return self.x
        if self.prologue == GRADIENT:
            return elementwise.bn_backward_apply(self, groups)
        return elementwise.materialize(self, groups)

    @property
    def prologue(self) -> int:
        """Which of the kernels' prologues forms it."""
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
    def loaded(self) -> int:
        """Bytes that a kernel loads, and keeps in flight, for one value."""
        beside = 0 if self.y is None else self.y.element_size()
        return self.x.element_size() + beside + (8 if self.per_pixel else 0)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What is read to load it."""
        return self.x, self.y, self.params


class Tiles(NamedTuple):
    """Per-tile numbers of a map, to be merged.

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
