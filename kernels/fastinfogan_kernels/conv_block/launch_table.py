"""Launch parameters: a rule that needs no tuning, and a table that overrides it.

The table, launch_table.json, is keyed by device, pass, shape, dtype and Triton version; the rule
decides what it does not list. Nothing is tuned unless asked for.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.layers import ConvGeometry
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.machine import Machine, limits, machine_of, power_of_two

TABLE = Path(__file__).with_name("launch_table.json")
"""The installed table."""

Pass = Literal["forward", "data_gradient", "weight_gradient"]


@dataclass(frozen=True)
class GemmTile:
    """How a product is tiled.

    Attributes:
        m: rows of a tile.
        n: columns of a tile.
        k: depth of a step.
        warps: of a program.
        stages: of the loads in flight.
        splits: parts into which the depth is cut; they are summed in order.
        registers: of a thread at most; None leaves it to the compiler.
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    splits: int = 1
    registers: int | None = None

    @property
    def limits(self) -> dict[str, int]:
        """The launch parameters that bound registers."""
        return limits(self.registers)


@dataclass(frozen=True)
class Choice:
    """The implementation of a pass of a layer.

    Attributes:
        candidate: "gemm" for the implicit GEMM, "aten" for ATen's convolution between elementwise
            passes.
        tile: of the implicit GEMM; None for the rule's.
    """

    candidate: Literal["gemm", "aten"] = "gemm"
    tile: GemmTile | None = None


def table_key(which: Pass, x: Tensor, weight: Tensor, geometry: ConvGeometry) -> str:
    """Return the table's key of a pass: all that its best choice depends on."""
    w = geometry.window
    device = torch.cuda.get_device_name(x.device) if x.device.type == "cuda" else x.device.type
    kind = "transposed" if geometry.transposed else "direct"
    window = f"{w.height}x{w.width}k{w.kernel}s{w.stride}p{w.pad_before}-{w.pad_after}"
    channels = f"{weight.shape[1]}>{weight.shape[0]}"
    dtype = str(x.dtype).removeprefix("torch.")
    triton_version = ".".join(triton.__version__.split(".")[:2])
    parts = (device, which, kind, window, channels, f"n{x.shape[0]}", dtype, triton_version)
    return "|".join(parts)


def lookup(which: Pass, x: Tensor, weight: Tensor, geometry: ConvGeometry) -> Choice:
    """Return the table's choice for a pass, or the default: implicit GEMM, tiled by the rule."""
    table = _override.get()
    if table is None:
        table = read_table(TABLE)
    return table.get(table_key(which, x, weight, geometry)) or table.get("*") or Choice()


@cache
def read_table(file: Path) -> dict[str, Choice]:
    """Read a launch table: {key: {"candidate": ..., "tile": {"m": ..., ...}}}.

    Raises:
        InputError: not such a table.
    """
    try:
        entries = json.loads(file.read_text())
        return {name: _choice(entry) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: not a launch table: {error}") from error


def _choice(entry: dict[str, Any]) -> Choice:
    tile = entry.get("tile")
    candidate = entry["candidate"]
    if candidate not in ("gemm", "aten"):
        raise ValueError(f"candidate is 'gemm' or 'aten', not {candidate!r}")
    return Choice(candidate, GemmTile(**tile) if tile else None)


_override: ContextVar[dict[str, Choice] | None] = ContextVar("launch_table", default=None)


@contextmanager
def using_table(table: dict[str, Choice]) -> Iterator[None]:
    """Take choices from this table instead of the installed one; "*" is for every key it lacks."""
    token = _override.set(table)
    try:
        yield
    finally:
        _override.reset(token)


def gemm_tile(
    x: Tensor, weight: Tensor, rows: int, columns: int, phases: int, value_bytes: int, *, flat: bool
) -> GemmTile:
    """Return the rule's tile of an implicit GEMM.

    Args:
        x: the operand, (N, height, width, channels).
        weight: for its dtype.
        rows: of the result, in all groups and one phase.
        columns: of the result.
        phases: of the geometry.
        value_bytes: that the prologue loads for a value.
        flat: a fully connected layer, whose depth may be split.
    """
    machine, channels = machine_of(x.device), x.shape[3]
    wide = x.element_size() > 2
    small = wide or machine.wide_warps
    n = power_of_two(columns, 16, 64 if small else machine.columns)
    m = (32 if wide else 64) if small else 128  # fp32 products take many registers
    while m > 64 and triton.cdiv(rows, m) * triton.cdiv(columns, n) * phases < machine.processors:
        m //= 2
    m = min(m, power_of_two(rows, 16, 128))
    if flat and 2 * triton.cdiv(rows, m) * triton.cdiv(columns, n) <= machine.processors:
        n = min(n, 64)  # narrower tiles before splits: partial sums cost bytes
    if wide and channels <= 16:
        n = min(n, 32)  # all taps are unrolled at once
    k = power_of_two(channels, 16, machine.depth(wide=wide))
    width = n * max(weight.element_size(), x.element_size())
    if m > 64 and _stages(k * (m * value_bytes + width), machine) < 2:
        m = 64  # loads that do not overlap with products cost more than a smaller tile
    step = k * (m * value_bytes + width)
    programs = triton.cdiv(rows, m) * triton.cdiv(columns, n) * phases
    splits = 1
    if flat:
        splits = max(1, min(machine.processors // programs, channels // (4 * k), 16))
    stages = _stages(step, machine)
    # Without warpgroups a thread's registers hold accumulators and the addresses of all stages.
    warps = 8 if m * n >= 64 * (128 if machine.warpgroups else 64) else 4
    if machine.wide_warps or (not machine.warpgroups and m > 64):
        stages = min(stages, 2)
    return GemmTile(m, n, k, warps, stages, splits, machine.registers)


def weight_gradient_tile(
    x: Tensor, depth: int, rows: int, columns: int, taps: int, value_bytes: int
) -> GemmTile:
    """Return the rule's tile of a weight gradient.

    Args:
        x: an operand, for device and dtype.
        depth: positions summed over, in all groups.
        rows: direct channels.
        columns: gathered channels.
        taps: of the window.
        value_bytes: that both prologues load for a value of each operand.
    """
    machine = machine_of(x.device)
    wide = x.element_size() > 2
    small = wide or machine.wide_warps
    m = 32 if wide else 64  # wgmma has no smaller tile
    n = power_of_two(columns, 16, 64 if small else machine.columns)
    if 2 * triton.cdiv(rows, m) * triton.cdiv(columns, n) * taps <= machine.processors:
        n = min(n, 64)
    k = power_of_two(depth, 16, machine.depth(wide=wide))
    programs = triton.cdiv(rows, m) * triton.cdiv(columns, n) * taps
    splits = max(1, min(machine.processors // programs, depth // (8 * k), 32))
    warps = 8 if m * n >= 64 * 128 else 4
    stages = _stages(k * max(m, n) * value_bytes, machine)
    return GemmTile(m, n, k, warps, stages, splits, machine.registers)


def _stages(step: int, machine: Machine) -> int:
    """Return the steps in flight: three, if their loads fit beside what the epilogue needs."""
    return max(1, min(3, int(0.75 * machine.shared) // step))


def elementwise_tile(x: Tensor, rows: int, columns: int) -> GemmTile:
    """Return the tile of an elementwise pass over a matrix; x for its device."""
    n = power_of_two(columns, 16, 64)
    m = power_of_two(rows, 16, 4096 // n)
    return GemmTile(m, n, 0, registers=machine_of(x.device).registers)
