"""Finalize batch norm: merge tile statistics in a fixed order, in fp32.

Forward: the tiles' (mean, M2) become mean and rstd, and with gamma and beta the scale and shift by
which the next kernel normalizes y while loading; running statistics are updated in place.

    mean = sum n_t mean_t / n      M2 = sum M2_t + n_t (mean_t - mean)^2
    scale = gamma * rstd           shift = beta - mean * scale

Sums of squares would not do: at mean / deviation 300 their variance is wrong by 1 %.

Backward: the tiles' sums S_g and S_gy = sum g * (y - mean) become the coefficients of

    dy = A * g + B * y + C,   A = gamma * rstd,  B = -A * rstd^2 * S_gy / n,
                              C = -A * S_g / n - B * mean

and dbeta = S_g, dgamma = S_gy * rstd, summed over the statistics groups.

The kernel that writes the tiles finalizes them, too, in the last program of some columns, by
`finalize_stats` or `finalize_grads`. Where `mergeable` says no, a kernel of its own does.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.deferred import TileStatistics
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import launch
from fastinfogan_kernels.runtime.workspace import empty, empty_like

MAX_MERGED_TILES = 8192
"""Tiles that the last program of some columns merges; more go to a kernel of their own."""


@triton.jit
def merge_group(
    c, c_ok, tiles_ptr, TILES, ROW_TILES, ROWS, COUNT, FEATURES, TILE_ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Return (mean, M2) of the features c over a group's tiles; see `bn_finalize_stats_kernel`.

    Loads bypass L1, which may hold older values.
    """
    t0 = tl.arange(0, BLOCK_T)
    mean = tl.zeros(c.shape, tl.float32)
    for start in tl.range(0, TILES, BLOCK_T, loop_unroll_factor=4):
        t = start + t0
        ok = (t < TILES)[:, None] & c_ok[None, :]
        at = tiles_ptr + t[:, None] * 2 * FEATURES + c[None, :]
        tile_mean = tl.load(at, mask=ok, other=0.0, cache_modifier=".cg")
        n = tl.minimum(ROWS - (t % ROW_TILES) * TILE_ROWS, TILE_ROWS).to(tl.float32)
        mean += tl.sum(tile_mean * (n / COUNT)[:, None], axis=0)
    m2 = tl.zeros(c.shape, tl.float32)
    for start in tl.range(0, TILES, BLOCK_T, loop_unroll_factor=4):
        t = start + t0
        ok = (t < TILES)[:, None] & c_ok[None, :]
        at = tiles_ptr + t[:, None] * 2 * FEATURES + c[None, :]
        tile_mean = tl.load(at, mask=ok, other=0.0, cache_modifier=".cg")
        tile_m2 = tl.load(at + FEATURES, mask=ok, other=0.0, cache_modifier=".cg")
        n = tl.minimum(ROWS - (t % ROW_TILES) * TILE_ROWS, TILE_ROWS).to(tl.float32)
        off = tile_mean - mean[None, :]
        m2 += tl.sum(tl.where(ok, tile_m2 + n[:, None] * off * off, 0.0), axis=0)
    return mean, m2


@triton.jit
def finalize_stats(
    c, c_ok, tiles_ptr, gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr, params_ptr,
    rstd_ptr, GROUPS, TILES, ROW_TILES, ROWS, COUNT, FEATURES,
    TILE_ROWS: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Finalize the forward statistics of features c; arguments as of `bn_finalize_stats_kernel`."""
    gamma = tl.load(gamma_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
    if running_mean_ptr is not None:
        running_mean = tl.load(running_mean_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
        running_var = tl.load(running_var_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
    for group in range(GROUPS):
        mean, m2 = merge_group(
            c, c_ok, tiles_ptr + group * TILES * 2 * FEATURES, TILES, ROW_TILES, ROWS, COUNT,
            FEATURES, TILE_ROWS, BLOCK_T,
        )  # fmt: skip
        variance = m2 / COUNT
        rstd = 1.0 / tl.sqrt(variance + EPS)
        scale = gamma * rstd
        to = params_ptr + group * 3 * FEATURES + c
        tl.store(to, scale, mask=c_ok)
        tl.store(to + FEATURES, beta - mean * scale, mask=c_ok)
        tl.store(to + 2 * FEATURES, mean, mask=c_ok)
        tl.store(rstd_ptr + group * FEATURES + c, rstd, mask=c_ok)
        if running_mean_ptr is not None:
            unbiased = m2 / (COUNT - 1.0)
            # A batch that is not finite does not move them, as in `cpu_backend`.
            finite = tl.abs(unbiased) < 3.0e38
            running_mean += tl.where(finite, MOMENTUM * (mean - running_mean), 0.0)
            running_var += tl.where(finite, MOMENTUM * (unbiased - running_var), 0.0)
    if running_mean_ptr is not None:
        stored = running_mean_ptr.dtype.element_ty
        tl.store(running_mean_ptr + c, running_mean.to(stored), mask=c_ok)
        tl.store(running_var_ptr + c, running_var.to(stored), mask=c_ok)


@triton.jit
def finalize_grads(
    c, c_ok, tiles_ptr, gamma_ptr, params_ptr, rstd_ptr, coefficients_ptr, dgamma_ptr, dbeta_ptr,
    GROUPS, TILES, REPEATS, COUNT, FEATURES,
    NORM: tl.constexpr, BLOCK_T: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Finalize the backward sums of features c; arguments as of `bn_finalize_grads_kernel`.

    UNROLL: steps of the loop whose loads are in flight at once.
    """
    t0 = tl.arange(0, BLOCK_T)
    dgamma = tl.zeros(c.shape, tl.float32)
    dbeta = tl.zeros(c.shape, tl.float32)
    for group in range(GROUPS):
        s_g = tl.zeros(c.shape, tl.float32)
        s_gy = tl.zeros(c.shape, tl.float32)
        for start in tl.range(0, TILES * REPEATS, BLOCK_T, loop_unroll_factor=UNROLL):
            t = start + t0
            ok = (t < TILES * REPEATS)[:, None] & c_ok[None, :]
            row = group * TILES + t // REPEATS
            at = tiles_ptr + (
                row[:, None] * 2 * FEATURES * REPEATS
                + (t % REPEATS)[:, None] * FEATURES
                + c[None, :]
            )
            s_g += tl.sum(tl.load(at, mask=ok, other=0.0, cache_modifier=".cg"), axis=0)
            if NORM:
                at += FEATURES * REPEATS
                s_gy += tl.sum(tl.load(at, mask=ok, other=0.0, cache_modifier=".cg"), axis=0)
        dbeta += s_g
        if NORM:
            gamma = tl.load(gamma_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
            mean = tl.load(params_ptr + (group * 3 + 2) * FEATURES + c, mask=c_ok, other=0.0)
            rstd = tl.load(rstd_ptr + group * FEATURES + c, mask=c_ok, other=0.0)
            dgamma += s_gy * rstd
            a = gamma * rstd
            b = -a * rstd * rstd * s_gy / COUNT
            to = coefficients_ptr + group * 3 * FEATURES + c
            tl.store(to, a, mask=c_ok)
            tl.store(to + FEATURES, b, mask=c_ok)
            tl.store(to + 2 * FEATURES, -a * s_g / COUNT - b * mean, mask=c_ok)
    tl.store(dbeta_ptr + c, dbeta.to(dbeta_ptr.dtype.element_ty), mask=c_ok)
    if NORM:
        tl.store(dgamma_ptr + c, dgamma.to(dgamma_ptr.dtype.element_ty), mask=c_ok)


@triton.jit
def bn_finalize_stats_kernel(
    tiles_ptr,  # fp32 (GROUPS, TILES, 2, FEATURES)
    gamma_ptr, beta_ptr,  # (FEATURES)
    running_mean_ptr, running_var_ptr,  # (FEATURES), updated in place, or None
    params_ptr,  # fp32 (GROUPS, 3, FEATURES) out: scale, shift, mean
    rstd_ptr,  # fp32 (GROUPS, FEATURES) out
    TILES, ROW_TILES, ROWS, COUNT, FEATURES,
    GROUPS: tl.constexpr, TILE_ROWS: tl.constexpr, EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Finalize the statistics; see the module. Grid: (blocks of features,).

    A phase has ROWS rows in ROW_TILES tiles of TILE_ROWS, the last one with what is left; TILES is
    of all phases. COUNT: values per feature and group.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    finalize_stats(
        c, c < FEATURES, tiles_ptr, gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr,
        params_ptr, rstd_ptr, GROUPS, TILES, ROW_TILES, ROWS, COUNT, FEATURES, TILE_ROWS, EPS,
        MOMENTUM, BLOCK_T,
    )  # fmt: skip


@triton.jit
def merge_tiles_kernel(
    tiles_ptr,  # fp32 (groups, TILES, 2, FEATURES)
    merged_ptr,  # fp32 (groups, 2, FEATURES) out: mean, M2
    TILES, ROW_TILES, ROWS, COUNT, FEATURES,
    TILE_ROWS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merge a rank's tiles into one, to be sent to others. Grid: (blocks of features, groups)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.program_id(1)
    mean, m2 = merge_group(
        c, c < FEATURES, tiles_ptr + group * TILES * 2 * FEATURES, TILES, ROW_TILES, ROWS, COUNT,
        FEATURES, TILE_ROWS, BLOCK_T,
    )  # fmt: skip
    to = merged_ptr + group * 2 * FEATURES + c
    tl.store(to, mean, mask=c < FEATURES)
    tl.store(to + FEATURES, m2, mask=c < FEATURES)


@triton.jit
def bn_finalize_grads_kernel(
    tiles_ptr,  # fp32 (GROUPS, TILES, 2, FEATURES * REPEATS)
    gamma_ptr,  # (FEATURES)
    params_ptr,  # fp32 (GROUPS, 3, FEATURES): scale, shift, mean
    rstd_ptr,  # fp32 (GROUPS, FEATURES)
    coefficients_ptr,  # fp32 (GROUPS, 3, FEATURES) out: A, B, C
    dgamma_ptr, dbeta_ptr,  # (FEATURES) out
    TILES, REPEATS, COUNT, FEATURES,
    GROUPS: tl.constexpr, NORM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Finalize the gradients' sums; see the module. Grid: (blocks of features,).

    REPEATS: pixels, where a fully connected layer's columns are pixels * channels; summed.
    Without NORM only dbeta is written: the gradient of a bias.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    finalize_grads(
        c, c < FEATURES, tiles_ptr, gamma_ptr, params_ptr, rstd_ptr, coefficients_ptr, dgamma_ptr,
        dbeta_ptr, GROUPS, TILES, REPEATS, COUNT, FEATURES, NORM, BLOCK_T, 4,
    )  # fmt: skip


def mergeable(tiles: int, columns: int, features: int, block: int) -> bool:
    """Return whether the kernel that writes the tiles can merge them, too.

    Args:
        tiles: of one column, in all groups.
        columns: of the feature map as a matrix: the features, or the features for each pixel.
        features: of batch norm.
        block: columns of a tile; there is a last program if it holds all columns of some features.
    """
    fits = columns == features or features % block == 0
    return fits and tiles * (columns // features) <= MAX_MERGED_TILES


def merge_tiles(tiles: TileStatistics, count: int) -> TileStatistics:
    """Merge a rank's tiles into one, which is all that other ranks need to know.

    Args:
        tiles: (mean, M2) of a feature map.
        count: values per feature and group.
    """
    groups, tile_count, _, features = tiles.data.shape
    merged = empty((groups, 1, 2, features), torch.float32, tiles.data.device)
    launch(
        merge_tiles_kernel,
        (triton.cdiv(features, 32), groups),
        tiles.data, merged, tile_count, tiles.row_tiles, tiles.rows, count, features,
        TILE_ROWS=tiles.tile_rows, BLOCK_T=32, BLOCK_C=32, num_warps=4,
        read=(tiles.data,), written=(merged,),
    )  # fmt: skip
    return TileStatistics(merged, count, 1, count)


class BatchNormForward(NamedTuple):
    """Operands and results of batch norm's forward pass.

    Attributes:
        gamma: (features,).
        beta: (features,).
        running_mean: (features,) or None; updated in place, group after group.
        running_var: likewise.
        params: fp32 (groups, 3, features), written: scale, shift, mean.
        rstd: fp32 (groups, features), written.
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
    def allocate(
        cls, gamma: Tensor, beta: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
        groups: int, eps: float, momentum: float,
    ) -> "BatchNormForward":  # fmt: skip
        """Allocate the results."""
        params = empty((groups, 3, len(gamma)), torch.float32, gamma.device)
        rstd = empty((groups, len(gamma)), torch.float32, gamma.device)
        return cls(gamma, beta, running_mean, running_var, params, rstd, eps, momentum)

    @property
    def features(self) -> int:
        """Number of features."""
        return len(self.gamma)

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        """The tensors, in the kernels' order."""
        return self[:6]

    @property
    def constants(self) -> dict[str, Any]:
        """The constexpr arguments."""
        return {"EPS": float(self.eps), "MOMENTUM": float(self.momentum)}

    @property
    def read(self) -> tuple[Tensor | None, ...]:
        """The operands, apart from the tiles."""
        return self[:4]

    @property
    def written(self) -> tuple[Tensor | None, ...]:
        """The results."""
        return self[2:6]

    def finalize(self, tiles: TileStatistics, count: int) -> None:
        """Merge tiles' (mean, M2) in a launch of its own.

        Args:
            tiles: of the feature map y.
            count: values per feature and group.
        """
        groups, tile_count, _, features = tiles.data.shape
        launch(
            bn_finalize_stats_kernel,
            (triton.cdiv(features, 32),),
            tiles.data, *self.pointers, tile_count, tiles.row_tiles, tiles.rows, count, features,
            GROUPS=groups, TILE_ROWS=tiles.tile_rows, **self.constants,
            BLOCK_T=32, BLOCK_C=32, num_warps=4,
            read=(tiles.data, *self.read), written=self.written,
        )  # fmt: skip


class BatchNormBackward(NamedTuple):
    """Operands and results of batch norm's backward pass; without batch norm, of a bias' gradient.

    Attributes:
        gamma: (features,), or None without batch norm.
        params: as forward wrote it, or None.
        rstd: likewise.
        coefficients: fp32 (groups, 3, features), written: dy's A, B, C; or None.
        dgamma: (features,), written, or None.
        dbeta: (features,), written: the gradient of beta, or of the bias.
    """

    gamma: Tensor | None
    params: Tensor | None
    rstd: Tensor | None
    coefficients: Tensor | None
    dgamma: Tensor | None
    dbeta: Tensor

    @classmethod
    def of_norm(cls, gamma: Tensor, params: Tensor, rstd: Tensor) -> "BatchNormBackward":
        """Allocate the results of a block with batch norm."""
        dgamma, dbeta = empty_like(gamma), empty_like(gamma)
        return cls(gamma, params, rstd, empty_like(params), dgamma, dbeta)

    @classmethod
    def of_block(
        cls, gamma: Tensor | None, params: Tensor | None, rstd: Tensor | None, bias: Tensor | None
    ) -> "BatchNormBackward | None":
        """Allocate the results of a block; None if it has neither gamma nor a bias."""
        if gamma is not None:
            assert params is not None
            assert rstd is not None
            return cls.of_norm(gamma, params, rstd)
        return None if bias is None else cls(None, None, None, None, None, empty_like(bias))

    @property
    def features(self) -> int:
        """Number of features."""
        return len(self.dbeta)

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        """The tensors, in the order of kernels that have the params already."""
        return self.gamma, *self[2:]

    @property
    def read(self) -> tuple[Tensor | None, ...]:
        """The operands, apart from the tiles and the params."""
        return self.gamma, self.rstd

    @property
    def written(self) -> tuple[Tensor | None, ...]:
        """The results."""
        return self[3:]

    @property
    def results(self) -> list[Tensor]:
        """The results that there are: coefficients, dgamma, dbeta, or dbeta alone."""
        return [t for t in self.written if t is not None]

    def finalize(self, sums: Tensor, count: int) -> None:
        """Merge tiles' sums in a launch of its own.

        Args:
            sums: fp32 (groups, tiles, 2, columns), columns a multiple of the features.
            count: values per feature and group.
        """
        groups, tile_count, _, columns = sums.shape
        launch(
            bn_finalize_grads_kernel,
            (triton.cdiv(self.features, 32),),
            sums, *self, tile_count, columns // self.features, count, self.features,
            GROUPS=groups, NORM=self.gamma is not None, BLOCK_T=32, BLOCK_C=32, num_warps=4,
            read=(sums, self.params, *self.read), written=self.written,
        )  # fmt: skip
