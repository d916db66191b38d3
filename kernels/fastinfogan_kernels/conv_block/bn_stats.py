"""Batch norm's few numbers: the host side of `device.statistics`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block import bn_stats_kernels
from fastinfogan_kernels.conv_block.deferred import Tiles
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.workspace import empty, empty_like

MOST_TILES = 8192
"""As many the last program of some columns merges by itself; more go to a kernel of their own."""


def mergeable(tiles: int, columns: int, features: int, block: int) -> bool:
    """Whether the kernel that writes the tiles can merge them, too.

    Args:
        tiles: of one column, in all groups.
        columns: of the map.
        features: columns are these, or once more these for each pixel.
        block: columns of a tile. One that holds all of some features' columns has a last program.
    """
    fits = columns == features or features % block == 0
    return fits and tiles * (columns // features) <= MOST_TILES


def merge_tiles(tiles: Tiles, count: int) -> Tiles:
    """Make one tile of all of this rank's: as much as other ranks need to know of them.

    Args:
        tiles: of a map, their (mean, M2).
        count: values per feature and group.
    """
    groups, many, _, features = tiles.data.shape
    found = empty((groups, 1, 2, features), torch.float32, tiles.data.device)
    launch(
        bn_stats_kernels.merge_tiles_kernel,
        (triton.cdiv(features, 32), groups),
        tiles.data,
        found,
        many,
        tiles.row_tiles,
        tiles.rows,
        count,
        features,
        TILE_ROWS=tiles.tile_rows,
        BLOCK_T=32,
        BLOCK_C=32,
        num_warps=4,
        read=(tiles.data,),
        written=(found,),
    )
    return Tiles(found, count, 1, count)


class Forward(NamedTuple):
    """What batch norm's forward takes and leaves.

    Attributes:
        gamma: (features,).
        beta: (features,).
        running_mean: (features,) or None; updated in place, group after group.
        running_var: likewise.
        params: fp32 (groups, 3, features), to be written: scale, shift, mean.
        rstd: fp32 (groups, features), to be written.
        eps: added to the variance.
        momentum: weight of the new statistics.
    """

    gamma: Tensor
    beta: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    params: Tensor
    rstd: Tensor
    eps: float
    momentum: float

    @classmethod
    def of(
        cls, gamma: Tensor, beta: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
        groups: int, eps: float, momentum: float,
    ) -> "Forward":  # fmt: skip
        """With room for what it leaves."""
        params = empty((groups, 3, len(gamma)), torch.float32, gamma.device)
        rstd = empty((groups, len(gamma)), torch.float32, gamma.device)
        return cls(gamma, beta, running_mean, running_var, params, rstd, eps, momentum)

    @property
    def features(self) -> int:
        """How many there are."""
        return len(self.gamma)

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        """As kernels take them."""
        return self[:6]

    @property
    def constants(self) -> dict[str, Any]:
        """As kernels take them."""
        return {"EPS": float(self.eps), "MOMENTUM": float(self.momentum)}

    @property
    def read(self) -> tuple[Tensor | None, ...]:
        """The operands, beside the tiles."""
        return self[:4]

    @property
    def written(self) -> tuple[Tensor | None, ...]:
        """The results."""
        return self[2:6]

    def finalize(self, tiles: Tiles, count: int) -> None:
        """Merge tiles' (mean, M2), in a launch of its own.

        Args:
            tiles: of the map y.
            count: values per feature and group.
        """
        groups, many, _, features = tiles.data.shape
        launch(
            bn_stats_kernels.bn_finalize_stats_kernel,
            (triton.cdiv(features, 32),),
            tiles.data,
            *self.pointers,
            many,
            tiles.row_tiles,
            tiles.rows,
            count,
            features,
            GROUPS=groups,
            TILE_ROWS=tiles.tile_rows,
            **self.constants,
            BLOCK_T=32,
            BLOCK_C=32,
            num_warps=4,
            read=(tiles.data, *self.read),
            written=self.written,
        )


class Backward(NamedTuple):
    """What batch norm's backward takes and leaves; or a bias' gradient, without batch norm.

    Attributes:
        gamma: (features,), or None without batch norm.
        params: as forward left it, or None.
        rstd: likewise.
        coefficients: fp32 (groups, 3, features), to be written: dy's A, B, C; or None.
        dgamma: (features,), to be written, or None.
        dbeta: (features,), to be written: the gradient of beta, or of the bias.
    """

    gamma: Tensor | None
    params: Tensor | None
    rstd: Tensor | None
    coefficients: Tensor | None
    dgamma: Tensor | None
    dbeta: Tensor

    @classmethod
    def of_norm(cls, gamma: Tensor, params: Tensor, rstd: Tensor) -> "Backward":
        """Of a block with batch norm."""
        dgamma, dbeta = empty_like(gamma), empty_like(gamma)
        return cls(gamma, params, rstd, empty_like(params), dgamma, dbeta)

    @classmethod
    def of_bias(cls, bias: Tensor) -> "Backward":
        """Of a block without."""
        return cls(None, None, None, None, None, empty_like(bias))

    @property
    def features(self) -> int:
        """How many there are."""
        return len(self.dbeta)

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        """As kernels take them that know the params anyway."""
        return self.gamma, *self[2:]

    @property
    def read(self) -> tuple[Tensor | None, ...]:
        """The operands, beside the tiles and the params."""
        return self.gamma, self.rstd

    @property
    def written(self) -> tuple[Tensor | None, ...]:
        """The results."""
        return self[3:]

    @property
    def results(self) -> list[Tensor]:
        """Those that there are: coefficients, dgamma, dbeta, or dbeta alone."""
        return [t for t in self.written if t is not None]

    def finalize(self, sums: Tensor, count: int) -> None:
        """Merge tiles' sums, in a launch of its own.

        Args:
            sums: fp32 (groups, tiles, 2, columns), columns a multiple of the features.
            count: values per feature and group.
        """
        groups, many, _, columns = sums.shape
        launch(
            bn_stats_kernels.bn_finalize_grads_kernel,
            (triton.cdiv(self.features, 32),),
            sums,
            *self,
            many,
            columns // self.features,
            count,
            self.features,
            GROUPS=groups,
            NORM=self.gamma is not None,
            BLOCK_T=32,
            BLOCK_C=32,
            num_warps=4,
            read=(sums, self.params, *self.read),
            written=self.written,
        )
