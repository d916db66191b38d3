"""Where each code stands in Q's output, as numbers that kernels read, and checks of the tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.latents import LatentSpec

CATEGORICAL, GAUSSIAN, UNIT_GAUSSIAN = 0, 1, 2
"""Kinds of a code: classes by logits; a Gaussian with its own standard deviation, or with 1."""


@dataclass(frozen=True)
class CodeEntry:
    """One code's row of the table, in Python numbers.

    Attributes:
        kind: CATEGORICAL, GAUSSIAN or UNIT_GAUSSIAN.
        column: column of the first logit, or of the mean.
        width: number of logits; of a Gaussian, the column of its raw log deviation.
        index: column of the code in `classes` or `continuous`.
        low: lower bound of the log deviation.
        high: upper bound of the log deviation.
    """

    kind: int
    column: int
    width: int
    index: int
    low: float = -math.inf
    high: float = math.inf


def entries(spec: LatentSpec) -> tuple[CodeEntry, ...]:
    """Return the table's rows, in the order of the codes."""
    found = [
        CodeEntry(CATEGORICAL, logits.start, logits.stop - logits.start, i)
        for i, logits in enumerate(spec.logit_slices)
    ]
    for i, code in enumerate(spec.continuous):
        mean, raw = spec.mean_slice.start + i, spec.deviation_slice.start + i
        if code.deviation == "clipped":
            low, high = (math.log(bound) for bound in code.clip)
            found.append(CodeEntry(GAUSSIAN, mean, raw, i, low, high))
        else:
            kind = UNIT_GAUSSIAN if code.deviation == "fixed" else GAUSSIAN
            found.append(CodeEntry(kind, mean, raw, i))
    return tuple(found)


@dataclass(frozen=True)
class CodeTable:
    """The layout of Q's output on one device: one compiled kernel serves every mix of codes.

    Attributes:
        table: int32 (codes, 4): kind, column, width and index of each `CodeEntry`.
        bounds: fp32 (codes, 2): low and high.
        owners: int64 (output_width,): the code to which a column of Q's output belongs.
        ones: fp32 (codes,): default weights.
        widest: logits of the largest categorical code; 1 without any.
    """

    table: Tensor
    bounds: Tensor
    owners: Tensor
    ones: Tensor
    widest: int


_tables: dict[tuple[LatentSpec, torch.device], CodeTable] = {}
_constants: dict[tuple[tuple[float, ...], torch.device, torch.dtype], Tensor] = {}


def code_table(spec: LatentSpec, device: torch.device) -> CodeTable:
    """Return the table of a spec on a device, cached."""
    if torch.compiler.is_compiling():
        return _make_table(spec, device)
    key = (spec, device)
    found = _tables.get(key)
    if found is None:
        with torch.inference_mode(False):  # autograd cannot save inference tensors
            found = _make_table(spec, device)
        if type(found.table) is Tensor:  # never cache a fake tensor
            _tables[key] = found
    return found


def constant(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a few numbers as a tensor, cached by value and device; never write to it."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device)
    key = (tuple(values), device, dtype)
    found = _constants.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = torch.tensor(key[0], dtype=dtype, device=device)
        if type(found) is Tensor:
            _constants[key] = found
    return found


def _make_table(spec: LatentSpec, device: torch.device) -> CodeTable:
    rows = entries(spec)
    owners = [0] * spec.output_width
    for i, row in enumerate(rows):
        if row.kind == CATEGORICAL:
            owners[row.column : row.column + row.width] = [i] * row.width
        else:
            owners[row.column] = owners[row.width] = i
    table = [(row.kind, row.column, row.width, row.index) for row in rows]
    bounds = [(row.low, row.high) for row in rows]
    return CodeTable(
        torch.tensor(table, dtype=torch.int32, device=device).view(-1, 4),
        torch.tensor(bounds, dtype=torch.float32, device=device).view(-1, 2),
        torch.tensor(owners, dtype=torch.int64, device=device),
        torch.ones(len(rows), dtype=torch.float32, device=device),
        max([1, *[row.width for row in rows if row.kind == CATEGORICAL]]),
    )


# --- counters of invalid data --------------------------------------------------------------------


def make_counters(spec: LatentSpec, device: torch.device | str = "cpu") -> Tensor:
    """Make the counters of a launch, int32 (2 + codes), zeroed.

    The first counts class indices out of range, the second non-finite rows of Q's output. The
    others are arrival counters: 0 between launches, never shared by two concurrent launches.
    """
    return torch.zeros(2 + max(len(spec.codes), 1), dtype=torch.int32, device=device)


def check_counters(counters: Tensor, least: int, device: torch.device) -> None:
    """Check a tensor of counters.

    Raises:
        InputError: wrong dtype, size or device.
    """
    if counters.dtype != torch.int32 or counters.dim() != 1 or counters.numel() < least:
        raise InputError(
            f"counters must be int32 ({least},) or longer, zeroed once; "
            f"not {counters.dtype} {tuple(counters.shape)}"
        )
    if counters.device != device:
        raise InputError(f"counters are on {counters.device}, the other tensors on {device}")


# --- checks of arguments -------------------------------------------------------------------------


class LikelihoodInputs(NamedTuple):
    """Q's output and the codes to be predicted, with the dtypes and strides that kernels take."""

    output: Tensor
    classes: Tensor
    continuous: Tensor

    def count_invalid(self, spec: LatentSpec, counters: Tensor) -> None:
        """Add to `counters` what the kernels would add, in plain torch."""
        sizes = constant([c.classes for c in spec.categorical], counters.device, torch.int64)
        out_of_range = ((self.classes < 0) | (self.classes >= sizes)).sum()
        non_finite = (~self.output.isfinite()).any(1).sum()
        counters[:2] += torch.stack([out_of_range, non_finite]).to(torch.int32)

    def first_invalid(self, spec: LatentSpec) -> str | None:
        """Describe the first class out of range, NaN or infinity; None if there is none."""
        for entry, name in zip(entries(spec), spec.names, strict=True):
            if entry.kind == CATEGORICAL:
                labels = self.classes[:, entry.index]
                (bad,) = torch.where((labels < 0) | (labels >= entry.width))
                if len(bad):
                    row = int(bad[0])
                    label = int(labels[row])
                    return f"row {row}: class {label} of {name} is not in [0, {entry.width})"
                columns = list(range(entry.column, entry.column + entry.width))
            else:
                columns = [entry.column, entry.width]
            bad, which = torch.where(~self.output[:, columns].isfinite())
            if len(bad):
                row, column = int(bad[0]), columns[int(which[0])]
                value = self.output[row, column].item()
                return f"row {row}: Q's output for {name}, column {column}, is {value}"
        return None


def check_inputs(
    output: Tensor, classes: Tensor, continuous: Tensor, spec: LatentSpec
) -> LikelihoodInputs:
    """Check Q's output and codes, and convert them as the kernels need them.

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
    check_codes(output.shape[0], classes, continuous, spec)
    for name, tensor in (("classes", classes), ("continuous", continuous)):
        if tensor.device != output.device:
            raise InputError(f"{name} are on {tensor.device}, Q's output is on {output.device}")
    wide = torch.promote_types(output.dtype, torch.float32)
    return LikelihoodInputs(
        output.contiguous(), classes.to(torch.int64).contiguous(), continuous.to(wide).contiguous()
    )


def check_codes(rows: int, classes: Tensor, continuous: Tensor, spec: LatentSpec) -> None:
    """Check that codes fit a spec and a batch.

    Raises:
        InputError: they do not; says which.
    """
    if rows == 0:
        raise InputError("an empty batch has no mean log-likelihood; give at least one row")
    for name, tensor, count in (
        ("classes", classes, len(spec.categorical)),
        ("continuous", continuous, len(spec.continuous)),
    ):
        if tuple(tensor.shape) != (rows, count):
            raise InputError(
                f"{name} must be (rows, codes) = ({rows}, {count}) for this spec, "
                f"not {tuple(tensor.shape)}"
            )
    if classes.is_floating_point() or classes.dtype == torch.bool:
        raise InputError(f"classes must be integers (int64), not {classes.dtype}")
    if not continuous.is_floating_point():
        raise InputError(f"continuous must be floating point, not {continuous.dtype}")


def check_weights(weights: Sequence[float], spec: LatentSpec) -> tuple[float, ...]:
    """Check that there is one finite weight per code.

    Raises:
        InputError: otherwise.
    """
    found = tuple(map(float, weights))
    if len(found) != len(spec.codes) or not all(map(math.isfinite, found)):
        raise InputError(
            f"weights must be one finite number for each of {len(spec.codes)} codes, not {found}"
        )
    return found


def weights_tensor(
    weights: Sequence[float] | Tensor | None,
    spec: LatentSpec,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return one weight per code, (codes,), from numbers, a tensor or None (ones); read only.

    Raises:
        InputError: there is not one finite number per code, or the tensor is not `dtype` (codes,)
            on the device.
    """
    if not isinstance(weights, Tensor):
        found = (1.0,) * len(spec.codes) if weights is None else check_weights(weights, spec)
        return constant(found, device, dtype)
    if weights.shape != (len(spec.codes),) or weights.dtype != dtype or weights.device != device:
        raise InputError(
            f"weights must be {dtype} ({len(spec.codes)},) on {device}, "
            f"not {weights.dtype} {tuple(weights.shape)} on {weights.device}"
        )
    return weights
