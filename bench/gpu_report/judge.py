"""Whether ours is as near to the truth as torch is, by numbers that chance does not decide.

Rounding moves a value across the kink of a leaky ReLU now and then, in ours or in torch's, and the
gradient there is another one. So the largest error is told and does not decide: the root of the
mean square does, and that of the thousandth worst element, which a wrong tile would move.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.gpu_report.stage import FailedError

Results = Mapping[str, Tensor]

TIMES = 2.0
"""How much further from the truth than torch at the same precision ours may be."""
SLACK = {
    torch.float64: 1e-10,
    torch.float32: 5e-6,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
}
"""Of the truth's root mean square, beside that: about a rounding of the format."""
CHANCE = {
    torch.float64: 0.0,
    torch.float32: 2e-3,
    torch.bfloat16: 1e-2,
    torch.float16: 5e-3,
}
"""What a kink may add to that."""
_THOUSANDTH_FROM = 16_384
"""Elements from which there is a thousandth worst one that is not a single element's chance."""
_TAIL = 6.0
"""How much larger the slack of the thousandth worst element is."""


def judge(
    ours: Results,
    theirs: Results,
    truth: Results,
    dtype: torch.dtype,
    kinks: frozenset[str] | set[str] = frozenset(),
) -> dict[str, Any]:
    """Compare all results.

    Args:
        ours: by name.
        theirs: torch's, in the same precision.
        truth: in fp64.
        dtype: of the computation.
        kinks: names of results behind kinks, where chance has a part: one value on the other side
            of one moves a gradient by a thousandth of its size, in ours or in torch's.

    Returns:
        What is furthest beyond torch: its name, both relative errors, and the largest of ours.

    Raises:
        FailedError: something is too far off, not finite or missing.
    """
    if ours.keys() != truth.keys():
        raise FailedError(f"results {sorted(ours)}, of {sorted(truth)} expected", {})
    worst: dict[str, Any] = {}
    failures = []
    for name, true in truth.items():
        slack = SLACK[dtype] + (CHANCE[dtype] if name in kinks else 0.0)
        found = _errors(ours[name], theirs[name], true, slack)
        if not worst or found["of what is allowed"] > worst["of what is allowed"]:
            worst = {"worst": name, **found}
        if not found["of what is allowed"] <= 1.0:  # nor is it, of NaN
            failures.append(
                f"{name}: off by {found['error']:.2e}, torch by {found['torch error']:.2e}, "
                f"at most {found['largest']:.2e}"
            )
    if failures:
        raise FailedError("; ".join(failures[:4]), {**worst, "wrong": len(failures)})
    return worst


def _errors(mine: Tensor, theirs: Tensor, true: Tensor, slack: float) -> dict[str, float]:
    """Relative to the truth's root mean square."""
    true = true.detach().double()
    sides = [
        (side.detach().to(true.device).double().reshape(true.shape) - true).abs().flatten()
        for side in (mine, theirs)
    ]
    if not true.numel():
        return {"error": 0.0, "torch error": 0.0, "largest": 0.0, "of what is allowed": 0.0}
    scale = max(true.square().mean().sqrt().item(), 1e-30)
    error, of_torch = (side.square().mean().sqrt().item() / scale for side in sides)
    used = error / (TIMES * of_torch + slack)
    if true.numel() >= _THOUSANDTH_FROM:
        tails = [side.topk(true.numel() // 1000).values[-1].item() / scale for side in sides]
        used = max(used, tails[0] / (TIMES * tails[1] + _TAIL * slack))
    if not torch.isfinite(sides[0]).all():
        used = float("nan")
    return {
        "error": error,
        "torch error": of_torch,
        "largest": sides[0].max().item() / scale,
        "of what is allowed": used,
    }


def same_bits(one: Results, other: Results, what: str) -> dict[str, Any]:
    """Check that two sides hold the same bits.

    Raises:
        FailedError: they do not.
    """
    if one.keys() != other.keys():
        raise FailedError(f"{what}: {sorted(one)} and {sorted(other)}", {})
    differing = [name for name, tensor in one.items() if not _equal(tensor, other[name])]
    if differing:
        first = differing[0]
        largest = (one[first].double() - other[first].double()).abs().max().item()
        raise FailedError(
            f"{what}: {len(differing)} of {len(one)} tensors differ, {first} by {largest:.2e}",
            {"differing": len(differing)},
        )
    return {"tensors": len(one), "elements": sum(tensor.numel() for tensor in one.values())}


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point():  # a NaN equals no NaN, and 0 equals -0
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        a, b = a.contiguous().view(kind), b.contiguous().view(kind)
    return torch.equal(a, b)
