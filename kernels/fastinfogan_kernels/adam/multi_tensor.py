"""The tensors that one launch updates, and a table of their addresses on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.runtime.workspace import is_dense, same_memory_order

CHUNK = 2048
"""Elements that a program updates: 16 a thread, four loads of 16 bytes from each operand."""
FIELDS = 10
"""Numbers that the table holds for a group."""
KINDS = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of gradients; working copies have one of the last two."""


@dataclass(frozen=True)
class TensorGroup:
    """A parameter and its tensors: all of one shape and strides, dense in memory, on one device.

    Attributes:
        parameter: fp32 (fp64 too in the reference); updated in place.
        gradient: fp32, bf16 or fp16.
        exp_avg: the parameter's dtype; in place.
        exp_avg_sq: likewise.
        step: fp32 (): updates made; incremented.
        working_copy: the parameter rounded to bf16 or fp16; None for none.
    """

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    working_copy: Tensor | None = None


class AddressTable:
    """The addresses of the tensors of some groups, and their chunks, in a table on the device.

    int64: per group the addresses of parameter, gradient, exp_avg, exp_avg_sq, step and working
    copy (0 for none), the number of elements, the index in `KINDS` of the gradient's and of the
    copy's dtype, and whether all addresses are multiples of 16 bytes; then per chunk
    group * 2^32 + number.

    A table is made when an address changes, and never rewritten, because a captured launch reads it
    at every replay. One that a CUDA graph reads is never freed. One that is made during a capture
    is copied from pinned memory, never freed either, when the graph is replayed, and read by that
    graph alone.

    Args:
        device: of all tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._key: tuple[tuple[int, ...], ...] = ()
        self._table = torch.empty(0, dtype=torch.int64, device=device)
        self._reserve = 1
        self._spares: list[Tensor] = []
        self._captured: list[Tensor] = []

    def reserve(self, captures: int) -> None:
        """Reserve pinned memory for this many captured updates, ready after the next update."""
        self._reserve = captures

    def of(self, groups: Sequence[TensorGroup]) -> tuple[Tensor, int]:
        """Return the table of these groups, and the number of its chunks.

        Raises:
            InputError: the tensors of a group do not have the same memory layout.
        """
        key = tuple(_entry(group) for group in groups)
        capturing = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        table = self._table
        if key != self._key:
            for group in groups:
                _check_layout(group)
            table = self._to_device(_make_table(key), capturing)
            if not capturing:
                self._key, self._table = key, table
        if capturing:
            self._captured.append(table)
        elif self._device.type == "cuda":
            # Pinned memory may not be allocated during a capture.
            self._spares = [each for each in self._spares if len(each) >= len(table)]
            missing = self._reserve - len(self._spares)
            self._spares += [_pinned(len(table)) for _ in range(missing)]
        return table, len(table) - len(key) * FIELDS

    def _to_device(self, table: NDArray[np.int64], capturing: bool) -> Tensor:
        if self._device.type == "meta":
            return torch.empty(len(table), dtype=torch.int64, device="meta")
        source = torch.from_numpy(table)
        if self._device.type != "cuda":
            return source
        pinned = self._spares.pop() if capturing and self._spares else _pinned(len(table))
        if capturing:
            self._captured.append(pinned)
        pinned = pinned[: len(table)].copy_(source)
        return pinned.to(self._device, non_blocking=True)


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.int64, pin_memory=True)


def _entry(group: TensorGroup) -> tuple[int, ...]:
    p, g, copy = group.parameter, group.gradient, group.working_copy
    tensors = (p, g, group.exp_avg, group.exp_avg_sq)
    addresses = [t.data_ptr() for t in tensors]
    copy_address = 0 if copy is None else copy.data_ptr()
    return (
        *addresses,
        group.step.data_ptr(),
        copy_address,
        p.numel(),
        KINDS.index(g.dtype),
        0 if copy is None else KINDS.index(copy.dtype),
        int(all(address % 16 == 0 for address in (*addresses, copy_address))),
    )


def _make_table(entries: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
    parts = [np.array(entries, np.int64).reshape(-1)]
    for number, entry in enumerate(entries):
        parts.append((number << 32) + np.arange(-(-entry[6] // CHUNK), dtype=np.int64))
    return np.concatenate(parts)


def _check_layout(group: TensorGroup) -> None:
    p = group.parameter
    for tensor in (group.gradient, group.exp_avg, group.exp_avg_sq, group.working_copy):
        if tensor is not None and not (
            same_memory_order(tensor, p) and tensor.device == p.device and is_dense(p)
        ):
            raise InputError(
                f"a parameter of shape {tuple(p.shape)} and strides {p.stride()} on {p.device} "
                f"cannot be updated with a tensor of shape {tuple(tensor.shape)} and strides "
                f"{tensor.stride()} on {tensor.device}; both must fill memory in the same order"
            )
