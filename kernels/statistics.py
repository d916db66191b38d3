"""Batch norm's few numbers: the host side of `device.statistics`."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastinfogan.kernels.device import statistics
from fastinfogan.kernels.launch import launch
from fastinfogan.kernels.maps import Tiles


class Normalisation(NamedTuple):
    """What batch norm's forward leaves.

    Attributes:
        params: fp32 (groups, 3, features): scale, shift, mean.
        rstd: fp32 (groups, features).
    """

    params: Tensor
    rstd: Tensor


def finalize_forward(
    tiles: Tiles,
    count: int,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    momentum: float,
) -> Normalisation:
    """Merge tiles' (mean, M2); update running statistics in place, group after group.

    Args:
        tiles: of the map y.
        count: values per feature and group.
        gamma: (features,).
        beta: (features,).
        running_mean: fp32 (features,) or None.
        running_var: likewise.
        eps: added to the variance.
        momentum: weight of the new statistics.
    """
    groups, many, _, features = tiles.data.shape
    params = torch.empty((groups, 3, features), dtype=torch.float32, device=gamma.device)
    rstd = torch.empty((groups, features), dtype=torch.float32, device=gamma.device)
    launch(
        statistics.finalize_forward_kernel,
        (triton.cdiv(features, 32),),
        tiles.data,
        gamma,
        beta,
        running_mean,
        running_var,
        params,
        rstd,
        many,
        tiles.row_tiles,
        tiles.rows,
        count,
        features,
        GROUPS=groups,
        BLOCK_T=32,
        BLOCK_C=32,
        TILE_ROWS=tiles.tile_rows,
        EPS=float(eps),
        MOMENTUM=float(momentum),
        TRACK=running_mean is not None,
        num_warps=4,
        read=(tiles.data, gamma, beta, running_mean, running_var),
        written=(params, rstd, running_mean, running_var),
    )
    return Normalisation(params, rstd)


def finalize_backward(
    sums: Tensor, count: int, gamma: Tensor | None, norm: Normalisation | None, like: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Turn tiles' sums into dy's coefficients and the gradients of gamma and beta, or of a bias.

    Args:
        sums: fp32 (groups, tiles, 2, columns), columns a multiple of the features.
        count: values per feature and group.
        gamma: (features,), or None without batch norm.
        norm: what forward left, or None.
        like: gamma, or the bias: features and dtype of the gradients.

    Returns:
        Coefficients fp32 (groups, 3, features) or None, dgamma or None, dbeta.
    """
    groups, many, _, columns = sums.shape
    features = like.shape[0]
    dbeta = torch.empty_like(like)
    dgamma = torch.empty_like(like) if norm is not None else None
    coefficients = torch.empty_like(norm.params) if norm is not None else None
    params, rstd = norm if norm is not None else (None, None)
    launch(
        statistics.finalize_backward_kernel,
        (triton.cdiv(features, 32),),
        sums,
        gamma,
        params,
        rstd,
        coefficients,
        dgamma,
        dbeta,
        many,
        columns // features,
        count,
        features,
        GROUPS=groups,
        BLOCK_T=32,
        BLOCK_C=32,
        NORM=norm is not None,
        num_warps=4,
        read=(sums, gamma, params, rstd),
        written=(coefficients, dgamma, dbeta),
    )
    return coefficients, dgamma, dbeta
