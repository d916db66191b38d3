"""Whether two sides compute the same, by the one rule: no further from the truth than torch is."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.cases import MismatchError

TIMES = 2.0
"""How much further from the truth than torch at the same precision ours may be."""
SLACK = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
}
"""Of the largest true value, beside that: a few roundings of the format."""


def check_against_truth(
    ours: Mapping[str, Tensor],
    peer: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    dtype: torch.dtype,
    slack: float | None = None,
    *,
    by_norm: bool = False,
) -> None:
    """Check each of our results, as |ours - truth| <= 2 |peer - truth| + slack |truth|.

    By the largest, or by the Euclidean norm where single values may be far off on either side: an
    activation that is rounded across a kink has another slope.

    Args:
        ours: results by name.
        peer: the same of torch in the same precision.
        truth: the same in fp64, or in fp32 of what is computed in 16 bits.
        dtype: in which both computed.
        slack: of the largest true value, or of the norm; None for `SLACK`.
        by_norm: whether results are compared by their norms.

    Raises:
        MismatchError: one is further off, is not finite, or is missing.
    """
    if ours.keys() != truth.keys():
        raise MismatchError(f"results {sorted(ours)}, of {sorted(truth)} expected")
    for name, true in truth.items():
        true = true.double().cpu()
        mine, theirs = (side[name].double().cpu().reshape(true.shape) for side in (ours, peer))
        error, allowed, size = (_size(t, by_norm) for t in (mine - true, theirs - true, true))
        limit = TIMES * allowed + (SLACK[dtype] if slack is None else slack) * size
        if not error <= limit:  # nor is it, of NaN
            raise MismatchError(
                f"{name}: off by {error:.3g} from the truth, where torch's own is off by "
                f"{allowed:.3g} and {limit:.3g} is allowed"
            )


def _size(t: Tensor, by_norm: bool) -> float:
    return float(torch.linalg.vector_norm(t) if by_norm else t.abs().max())
