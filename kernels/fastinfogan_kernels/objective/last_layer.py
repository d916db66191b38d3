"""The last layer of a head, fully connected, in plain torch; checks shared by Q's and D's head."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.errors import InputError


def check_last_layer(head: str, x: Deferred, weight: Tensor, bias: Tensor | None) -> None:
    """Check that a layer fits its input.

    Args:
        head: "Q" or "D", for messages.
        x: the input; rows (R, K), contiguous.
        weight: (outputs, K).
        bias: (outputs,) or None.

    Raises:
        InputError: shapes or devices do not fit.
    """
    rows = x.x
    if rows.dim() != 2 or weight.dim() != 2 or weight.shape[1] != rows.shape[1]:
        raise InputError(
            f"{head}'s last layer needs rows (R, K) and a weight (outputs, K), not "
            f"{tuple(rows.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"{head}'s last bias must be ({len(weight)},), not {tuple(bias.shape)}")
    if not rows.is_contiguous():
        raise InputError(f"{head}'s last layer needs contiguous rows")
    for tensor in (weight, bias, x.params):
        if tensor is not None and tensor.device != rows.device:
            raise InputError(
                f"{head}'s last layer is on {tensor.device}, its rows on {rows.device}"
            )


def materialize_rows(x: Deferred) -> Tensor:
    """Compute the rows that a deferred feature map of rows stands for."""
    if x.params is None and x.slope == 1.0:
        return x.x
    wide = x.x.to(torch.promote_types(x.x.dtype, torch.float32))
    if x.params is not None:
        groups, _, features = x.params.shape
        parts = wide.view(groups, -1, features)
        wide = (parts * x.params[:, 0, None] + x.params[:, 1, None]).view(x.x.shape)
    return (F.leaky_relu(wide, x.slope) if x.slope != 1.0 else wide).to(x.x.dtype)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a fully connected layer in the rows' dtype."""
    return F.linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))
