"""Whether results are as near to the truth as PyTorch's at the same precision.

Two numbers of a result decide, both relative to the truth's root mean square: the root mean square
of the error, and its tail: the largest error of a small tensor, the thousandth worst of a large
one, which a wrong tile would move. Either may be twice the baseline's, plus a few roundings.
Where an activation's kink lies in between, rounding moves a value across it now and then and the
gradient there is another one; there chance has an allowance, and single elements do not decide.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Results = Mapping[str, Tensor]

FACTOR = 2.0
"""How much further from the truth than PyTorch's a result may be."""
ROUNDING = {torch.float64: 1e-10, torch.float32: 5e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Allowed beside that, of the truth's root mean square: about a rounding of the format."""
KINK = {torch.float64: 0.0, torch.float32: 5e-3, torch.bfloat16: 1e-2, torch.float16: 5e-3}
"""Allowed beside that of results behind an activation's kink."""
_TAIL = 6.0
"""Times the root mean square's allowance that the tail's is."""
_LARGE = 16_384
"""Elements from which the tail is what a thousandth of the errors exceed."""


class MismatchError(AssertionError):
    """Results farther from the truth than PyTorch's, or not the same bits."""


def check_accuracy(
    actual: Results, baseline: Results, truth: Results, dtype: torch.dtype, *, kinks: bool = False
) -> None:
    """Compare results with the truth, as |actual - truth| <= 2 |baseline - truth| + roundings.

    Args:
        actual: results by name.
        baseline: PyTorch's in the same precision.
        truth: in fp64, or in fp32 of what is computed in 16 bits.
        dtype: of the computation.
        kinks: whether results are behind the kink of an activation.

    Raises:
        MismatchError: a result is too far off, not finite or missing.
    """
    if actual.keys() != truth.keys() or not truth:
        raise MismatchError(f"results {sorted(actual)}, expected {sorted(truth)}")
    found = (
        _excess(name, actual[name], baseline[name], true.detach().double(), dtype, kinks=kinks)
        for name, true in truth.items()
        if true.numel()
    )
    if wrong := [each for each in found if each]:
        raise MismatchError("; ".join(wrong[:4]))


def _excess(
    name: str, actual: Tensor, baseline: Tensor, truth: Tensor, dtype: torch.dtype, *, kinks: bool
) -> str:
    """Describe a deviation beyond what is allowed; empty if there is none."""
    errors, expected = (
        (t.detach().to(truth.device).double().reshape(truth.shape) - truth).abs().flatten()
        for t in (actual, baseline)
    )
    size = max(_rms(truth), 1e-30)
    error, of_baseline = _rms(errors) / size, _rms(expected) / size
    allowed = ROUNDING[dtype] + (KINK[dtype] if kinks else 0.0)
    used = error / (FACTOR * of_baseline + allowed)
    if truth.numel() >= _LARGE or not kinks:
        nth = truth.numel() // 1000 if truth.numel() >= _LARGE else 1
        tail, of_tail = (float(t.topk(nth).values[-1]) / size for t in (errors, expected))
        used = max(used, tail / (FACTOR * of_tail + _TAIL * allowed))
    if used <= 1.0 and torch.isfinite(errors).all():
        return ""
    return (
        f"{name}: off by {error:.2e} of its size, PyTorch by {of_baseline:.2e}; "
        f"{float(errors.max()) / size:.2e} at most, {used:.3g} of what is allowed"
    )


def _rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


def check_same_bits(actual: Results, expected: Results, what: str = "results") -> dict[str, Any]:
    """Compare results bit by bit.

    Args:
        actual: by name.
        expected: by name.
        what: they are, for the error.

    Returns:
        How many tensors and elements were compared.

    Raises:
        MismatchError: a bit differs, or a result is missing.
    """
    if actual.keys() != expected.keys():
        raise MismatchError(f"{what}: {sorted(actual)}, expected {sorted(expected)}")
    differing = [name for name, t in actual.items() if not _same_bits(t, expected[name])]
    if differing:
        raise MismatchError(
            f"{what}: {len(differing)} of {len(actual)} tensors differ, {differing[0]} for one"
        )
    return {"tensors": len(actual), "elements": sum(t.numel() for t in actual.values())}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare bit by bit: a NaN equals the same NaN, and 0 does not equal -0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point():
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        a, b = a.contiguous().view(kind), b.contiguous().view(kind)
    return torch.equal(a, b)
