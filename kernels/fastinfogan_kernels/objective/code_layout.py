"""The codes of a `LatentSpec` as numbers, so that a kernel needs no spec and unrolls nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastinfogan_kernels.latents import LatentSpec

CATEGORICAL, GAUSSIAN, UNIT_GAUSSIAN = 0, 1, 2
"""The kinds of a code: classes by logits; a Gaussian with a deviation of its own, or with 1."""


@dataclass(frozen=True)
class Entry:
    """One code's row of the table, for plain torch.

    Attributes:
        kind: see the module.
        column: of the first logit, or of the mean.
        width: how many logits, or the raw deviation's column.
        index: its column in `classes` or `continuous`.
        low: between this
        high: and this the log deviation is clipped.
    """

    kind: int
    column: int
    width: int
    index: int
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class CodeTable:
    """What stands where in Q's output, on one device.

    Attributes:
        table: int32 (codes, 4), per code (kind, column, width, index), as in `Entry`.
        bounds: fp32 (codes, 2): low and high.
        owners: int64 (output width,): to which code a column of Q's output belongs.
        ones: fp32 (codes,): the weights of codes that have none.
        widest: logits of the largest categorical code; 1 without any.
    """

    table: Tensor
    bounds: Tensor
    owners: Tensor
    ones: Tensor
    widest: int


def entries(spec: LatentSpec) -> tuple[Entry, ...]:
    """The table's rows, in the order of the codes."""
    found = [
        Entry(CATEGORICAL, place.start, place.stop - place.start, i)
        for i, place in enumerate(spec.logit_slices)
    ]
    for i, code in enumerate(spec.continuous):
        mean, raw = spec.mean_slice.start + i, spec.deviation_slice.start + i
        if code.deviation == "clipped":
            low, high = (math.log(bound) for bound in code.clip)
            found.append(Entry(GAUSSIAN, mean, raw, i, low, high))
        else:
            kind = UNIT_GAUSSIAN if code.deviation == "fixed" else GAUSSIAN
            found.append(Entry(kind, mean, raw, i))
    return tuple(found)


_tables: dict[tuple[LatentSpec, torch.device], CodeTable] = {}
_rows: dict[tuple[tuple[float, ...], torch.device, torch.dtype], Tensor] = {}


def code_table(spec: LatentSpec, device: torch.device) -> CodeTable:
    """The table of a spec on a device, made once for each."""
    if torch.compiler.is_compiling():
        return _make(spec, device)
    key = (spec, device)
    found = _tables.get(key)
    if found is None:
        with torch.inference_mode(False):  # whose tensors autograd could not save
            found = _make(spec, device)
        if type(found.table) is Tensor:  # not a fake one, of which a cache must hold none
            _tables[key] = found
    return found


def row_of(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A few numbers as a tensor, made once for each device; never to be written to."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device)
    key = (tuple(values), device, dtype)
    found = _rows.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = torch.tensor(key[0], dtype=dtype, device=device)
        if type(found) is Tensor:
            _rows[key] = found
    return found


def _make(spec: LatentSpec, device: torch.device) -> CodeTable:
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
