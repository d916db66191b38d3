"""Q's output and the codes that it is to tell: checked, and what is wrong with them counted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.latents import LatentSpec
from fastinfogan_kernels.objective.code_layout import CATEGORICAL, entries, row_of


def counters(spec: LatentSpec, device: torch.device | str = "cpu") -> Tensor:
    """What a launch counts in, int32 (2 + codes), zeroed.

    The first counts class indices out of range, the second rows of Q's output with a NaN or an
    infinity. The others are the kernels' own: they must be 0 between launches, and no two launches
    may share them at a time.
    """
    return torch.zeros(2 + max(len(spec.codes), 1), dtype=torch.int32, device=device)


class Targets(NamedTuple):
    """Q's output and the codes that it is to tell, checked and as the kernels take them."""

    output: Tensor
    classes: Tensor
    continuous: Tensor


def check_targets(rows: int, classes: Tensor, continuous: Tensor, spec: LatentSpec) -> None:
    """Check that codes fit a spec and a batch.

    Raises:
        InputError: one does not; says which.
    """
    if rows == 0:
        raise InputError("an empty batch has no mean log-likelihood; give at least one row")
    for name, tensor, many in (
        ("classes", classes, len(spec.categorical)),
        ("continuous", continuous, len(spec.continuous)),
    ):
        if tuple(tensor.shape) != (rows, many):
            raise InputError(
                f"{name} must be (rows, codes) = ({rows}, {many}) for this spec, "
                f"not {tuple(tensor.shape)}"
            )
    if classes.is_floating_point() or classes.dtype == torch.bool:
        raise InputError(f"classes are integers (int64), not {classes.dtype}")
    if not continuous.is_floating_point():
        raise InputError(f"continuous codes are floating-point numbers, not {continuous.dtype}")


def checked(output: Tensor, classes: Tensor, continuous: Tensor, spec: LatentSpec) -> Targets:
    """Check Q's output and codes, and give them the dtypes and strides that the kernels take.

    Raises:
        InputError: shapes, dtypes or devices do not fit each other or the spec.
    """
    if output.dim() != 2 or output.shape[1] != spec.output_width:
        raise InputError(
            f"Q's output must be (rows, {spec.output_width}) for this spec: "
            f"{sum(c.classes for c in spec.categorical)} logits and two numbers for each of "
            f"{len(spec.continuous)} continuous codes; it is {tuple(output.shape)}"
        )
    if not output.is_floating_point():
        raise InputError(f"Q's output must be floating point, not {output.dtype}")
    check_targets(output.shape[0], classes, continuous, spec)
    for name, tensor in (("classes", classes), ("continuous", continuous)):
        if tensor.device != output.device:
            raise InputError(f"{name} are on {tensor.device}, Q's output is on {output.device}")
    wide = torch.promote_types(output.dtype, torch.float32)
    return Targets(
        output.contiguous(), classes.to(torch.int64).contiguous(), continuous.to(wide).contiguous()
    )


def check_counters(given: Tensor, least: int, device: torch.device) -> None:
    """Check a tensor that kernels count in.

    Raises:
        InputError: wrong dtype, size or device.
    """
    if given.dtype != torch.int32 or given.dim() != 1 or given.numel() < least:
        raise InputError(
            f"counters are int32 ({least},) or longer, zeroed once; "
            f"not {given.dtype} {tuple(given.shape)}"
        )
    if given.device != device:
        raise InputError(f"the counters are on {given.device}, the other tensors on {device}")


def check_weights(weights: Sequence[float], spec: LatentSpec) -> tuple[float, ...]:
    """Check that there is one finite weight per code.

    Raises:
        InputError: otherwise.
    """
    found = tuple(map(float, weights))
    if len(found) != len(spec.codes) or not all(map(math.isfinite, found)):
        raise InputError(
            f"weights are one finite number for each of {len(spec.codes)} codes, not {found}"
        )
    return found


def weight_row(
    weights: Sequence[float] | Tensor | None,
    spec: LatentSpec,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One weight per code as a tensor, not to be written to: given numbers, given tensor, or ones.

    Raises:
        InputError: there is not one finite number per code, or the tensor is not `dtype` (codes,)
            on the device.
    """
    if not isinstance(weights, Tensor):
        found = (1.0,) * len(spec.codes) if weights is None else check_weights(weights, spec)
        return row_of(found, device, dtype)
    if weights.shape != (len(spec.codes),) or weights.dtype != dtype or weights.device != device:
        raise InputError(
            f"weights are {dtype} ({len(spec.codes)},) on {device}, "
            f"not {weights.dtype} {tuple(weights.shape)} on {weights.device}"
        )
    return weights


def count_problems(targets: Targets, spec: LatentSpec, counted: Tensor) -> None:
    """Count in plain torch what the kernels count; adds to `counted`."""
    sizes = row_of([c.classes for c in spec.categorical], counted.device, torch.int64)
    out_of_range = ((targets.classes < 0) | (targets.classes >= sizes)).sum()
    not_finite = (~targets.output.isfinite()).any(1).sum()
    counted[:2] += torch.stack([out_of_range, not_finite]).to(torch.int32)


def first_problem(targets: Targets, spec: LatentSpec) -> str | None:
    """Say which code and row holds the first class out of range, NaN or infinity; None if none."""
    for entry, name in zip(entries(spec), spec.names, strict=True):
        if entry.kind == CATEGORICAL:
            labels = targets.classes[:, entry.index]
            (bad,) = torch.where((labels < 0) | (labels >= entry.width))
            if len(bad):
                row = int(bad[0])
                return f"row {row}: {name} has {entry.width} classes, and none {int(labels[row])}"
            columns = list(range(entry.column, entry.column + entry.width))
        else:
            columns = [entry.column, entry.width]
        bad, place = torch.where(~targets.output[:, columns].isfinite())
        if len(bad):
            row, column = int(bad[0]), columns[int(place[0])]
            value = targets.output[row, column].item()
            return f"row {row}: Q's output for {name}, column {column}, is {value}"
    return None
