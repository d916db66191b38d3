"""The tensors of parameters that one launch updates, and where they lie.

A `Slot` holds the tensors of one parameter. On a GPU the addresses of all lie in a table on the
device, made anew only when one of them changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastinfogan_kernels.errors import InputError

CHUNK = 2048
"""Elements that a program updates: 16 a thread, four loads of 16 bytes from each operand."""
FIELDS = 10
"""Numbers that the table holds for a tensor."""
KINDS = (torch.float32, torch.bfloat16, torch.float16)
"""What a gradient may be; a copy is one of the last two."""


@dataclass(frozen=True)
class Slot:
    """One parameter's tensors: all of its shape and strides, dense in memory, on one device.

    Attributes:
        parameter: fp32 (fp64 too in the reference); updated in place.
        gradient: fp32, bf16 or fp16; None if the update was made in the epilogue of the weight
            gradient, and is only to be counted.
        exp_avg: the parameter's dtype; in place.
        exp_avg_sq: likewise.
        step: fp32, no dimension: updates made; moved on by 1.
        copy: bf16 or fp16, the parameter rounded; None for none.
    """

    parameter: Tensor
    gradient: Tensor | None
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    copy: Tensor | None = None


def same_memory_order(a: Tensor, b: Tensor) -> bool:
    """Whether walking both in memory order visits the same elements; strides of 1 row are free."""
    if a.shape != b.shape:
        return False
    return a.stride() == b.stride() or all(
        x == y for x, y, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size > 1
    )


def is_dense(x: Tensor) -> bool:
    """Whether a tensor's elements fill a stretch of memory, each one once."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


class AddressTable:
    """Where the tensors of some slots lie, and how they are cut into chunks, on the device.

    int64: per slot the addresses of parameter, gradient, exp_avg, exp_avg_sq, step and copy (0 for
    none), its elements, the gradient's and the copy's kinds, and whether all addresses are ones of
    16 bytes; then per chunk slot * 2^32 + number.

    A table is never rewritten, because a captured launch reads it at every replay. One that a CUDA
    graph reads is kept for good. One that is made while a graph is captured, from pinned memory
    that is kept likewise, is filled by the graph's replay alone, so nobody else reads it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._key: tuple[tuple[int, ...], ...] = ()
        self._table = torch.empty(0, dtype=torch.int64, device=device)
        self._reserve = 1
        self._spares: list[Tensor] = []
        self._kept: list[Tensor] = []

    def reserve(self, captures: int) -> None:
        """Have pinned memory for so many captured updates at hand after the next update."""
        self._reserve = captures

    def of(self, slots: Sequence[Slot]) -> tuple[Tensor, int]:
        """The table of these slots, and the number of its chunks.

        Raises:
            InputError: a slot's tensors are not laid out alike.
        """
        key = tuple(_entry(slot) for slot in slots)
        capturing = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        table = self._table
        if key != self._key:
            for slot in slots:
                require_alike(slot)
            table = self._on_device(_layout(key), capturing)
            if not capturing:
                self._key, self._table = key, table
        if capturing:
            self._kept.append(table)
        elif self._device.type == "cuda":
            # A capture may not be able to make pinned memory.
            self._spares = [each for each in self._spares if len(each) >= len(table)]
            missing = self._reserve - len(self._spares)
            self._spares += [_pinned(len(table)) for _ in range(missing)]
        return table, len(table) - len(key) * FIELDS

    def _on_device(self, made: NDArray[np.int64], capturing: bool) -> Tensor:
        if self._device.type == "meta":
            return torch.empty(len(made), dtype=torch.int64, device="meta")
        source = torch.from_numpy(made)
        if self._device.type != "cuda":
            return source
        pinned = self._spares.pop() if capturing and self._spares else _pinned(len(made))
        if capturing:
            self._kept.append(pinned)
        pinned = pinned[: len(made)].copy_(source)
        return pinned.to(self._device, non_blocking=True)


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.int64, pin_memory=True)


def _entry(slot: Slot) -> tuple[int, ...]:
    p, g, copy = slot.parameter, slot.gradient, slot.copy
    data = (p, g, slot.exp_avg, slot.exp_avg_sq)
    addresses = [0 if t is None else t.data_ptr() for t in data]
    copied = 0 if copy is None else copy.data_ptr()
    return (
        *addresses,
        slot.step.data_ptr(),
        copied,
        0 if g is None else p.numel(),
        0 if g is None else KINDS.index(g.dtype),
        0 if copy is None else KINDS.index(copy.dtype),
        int(all(address % 16 == 0 for address in (*addresses, copied))),
    )


def _layout(entries: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
    parts = [np.array(entries, np.int64).reshape(-1)]
    for number, entry in enumerate(entries):
        parts.append((number << 32) + np.arange(-(-entry[6] // CHUNK), dtype=np.int64))
    return np.concatenate(parts)


def require_alike(slot: Slot) -> None:
    """Check that a slot's tensors can be walked together, in memory order.

    Raises:
        InputError: they cannot.
    """
    p = slot.parameter
    operands = (slot.gradient, slot.exp_avg, slot.exp_avg_sq, slot.copy)
    for tensor in operands:
        if tensor is not None and not (
            same_memory_order(tensor, p) and tensor.device == p.device and is_dense(p)
        ):
            raise InputError(
                f"a parameter of shape {tuple(p.shape)} and strides {p.stride()} on {p.device} "
                f"cannot be updated with a tensor of shape {tuple(tensor.shape)} and strides "
                f"{tensor.stride()} on {tensor.device}; both must fill memory in the same order"
            )
