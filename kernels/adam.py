"""Adam: the host side of `device.adam`, its C++ twin, and the definition in plain torch.

A `Slot` holds the tensors of one parameter; an update takes a list of them. On a GPU the addresses
lie in a table on the device, made anew only when one of them changes, and one launch updates all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastinfogan.errors import InputError
from fastinfogan.kernels.backend import native_available
from fastinfogan.kernels.device.adam import adam_kernel
from fastinfogan.kernels.launch import is_recording, launch, run_native
from fastinfogan.kernels.library import register

CHUNK = 2048
"""Elements that a program updates: 16 a thread, four loads of 16 bytes from each operand."""
PART = 256
"""Elements that it updates at a time, where the chunk is cut off or an address is odd."""
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


@dataclass(frozen=True)
class Rates:
    """Adam's numbers.

    Attributes:
        lr: the learning rate; for the kernel a number, or an fp32 tensor of one element on the
            device, which it reads there.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of their squares.
        eps: added to the root of the latter.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float

    @property
    def scalars(self) -> tuple[float, ...]:
        """beta, 1 - beta and log beta of both, and eps: in double, rounded when passed."""
        logs = [math.log(beta) if beta > 0 else -math.inf for beta in (self.beta1, self.beta2)]
        return (
            self.beta1, 1 - self.beta1, logs[0], self.beta2, 1 - self.beta2, logs[1], self.eps,
        )  # fmt: skip


class Scaling(NamedTuple):
    """What a gradient scaler hands to an update.

    Attributes:
        found_inf: fp32, one element: not 0, and nothing is updated. None: update.
        grad_scale: fp32, one element: gradients are divided by it. None: 1.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None


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


class OneLaunch:
    """Adam for lists of parameters on one device, one launch a list.

    Args:
        device: of all tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._table = AddressTable(device)
        self._counters = torch.zeros(2, dtype=torch.int32, device=device)

    def reserve(self, captures: int) -> None:
        """Prepare, at the next update, for so many of them in CUDA graphs captured after it."""
        self._table.reserve(captures)

    @property
    def skipped(self) -> int:
        """Updates skipped because of found_inf. Waits for the device."""
        return int(self._counters[1].item())

    def update(
        self, slots: Sequence[Slot], rates: Rates, scaling: Scaling, *, counted: bool = True
    ) -> None:
        """Update parameters, moments, copies and step counters; nothing waits for the device.

        Args:
            slots: fp32 parameters and their tensors.
            rates: Adam's numbers.
            scaling: of the gradients.
            counted: count this update if it is skipped; a network's second list is not.

        Raises:
            InputError: a slot's tensors are not laid out alike.
        """
        table, chunks = self._table.of(slots)
        operands = [
            t for s in slots if s.gradient is not None
            for t in (s.parameter, s.exp_avg, s.exp_avg_sq)
        ]  # fmt: skip
        gradients = [s.gradient for s in slots]
        copies = [s.copy for s in slots if s.gradient is not None]
        steps = [s.step for s in slots]
        launch(
            adam_kernel,
            (max(chunks, 1),),
            table,
            self._counters,
            scaling.found_inf,
            scaling.grad_scale,
            rates.lr,
            *rates.scalars,
            int(counted),
            len(slots),
            chunks,
            LR_ON_DEVICE=isinstance(rates.lr, Tensor),
            FIELDS=FIELDS,
            CHUNK=CHUNK,
            PART=PART,
            num_warps=4,
            read=(*operands, *gradients, *steps, table),
            written=(*operands, *copies, *steps),
        )


def update_native(slots: Sequence[Slot], rates: Rates, grad_scale: float) -> None:
    """As `OneLaunch.update`, in C++ on CPU tensors; parameters at one step are one call."""
    by_step: dict[float, list[Slot]] = {}
    for slot in slots:
        if slot.gradient is not None:
            by_step.setdefault(slot.step.item(), []).append(slot)
    for step, alike in by_step.items():
        run_native(
            "adam",
            [s.parameter.detach() for s in alike],
            [s.gradient for s in alike],
            [s.exp_avg for s in alike],
            [s.exp_avg_sq for s in alike],
            [None if s.copy is None else s.copy.detach() for s in alike],
            float(rates.lr),
            rates.beta1,
            rates.beta2,
            rates.eps,
            step + 1,
            grad_scale,
        )
    torch._foreach_add_([s.step for s in slots], 1)


def update_reference(slots: Sequence[Slot], rates: Rates, grad_scale: float) -> None:
    """As `OneLaunch.update`, in plain torch, in the parameters' dtype."""
    for s in slots:
        s.step.add_(1)
        if s.gradient is None:
            continue
        t = s.step.item()
        g = s.gradient.to(s.parameter.dtype) / grad_scale
        s.exp_avg.lerp_(g, 1 - rates.beta1)
        s.exp_avg_sq.mul_(rates.beta2).addcmul_(g, g, value=1 - rates.beta2)
        root = math.sqrt(1 - rates.beta2**t)
        denominator = (s.exp_avg_sq.sqrt() / root).add_(rates.eps)
        rate = float(rates.lr) / (1 - rates.beta1**t)
        s.parameter.addcdiv_(s.exp_avg, denominator, value=-rate)
        if s.copy is not None:
            s.copy.copy_(s.parameter)


NATIVELY = -1
"""In the place of a launcher's number: C++ computes it, or plain torch."""
_launchers: WeakValueDictionary[int, OneLaunch] = WeakValueDictionary()


def launcher_of(device: torch.device) -> tuple[OneLaunch, int]:
    """A new launcher for a list of parameters, to be kept, and the number `update` knows it by."""
    launcher = OneLaunch(device)
    number = id(launcher)
    _launchers[number] = launcher
    return launcher, number


def _update(
    parameters: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    steps: list[Tensor], copies: list[Tensor], copied: list[int], gradients: list[Tensor],
    found_inf: Tensor | None, lr: float, beta1: float, beta2: float, eps: float, launcher: int,
) -> None:  # fmt: skip
    device = parameters[0].device
    if is_recording() and (launcher == NATIVELY or device.type != "meta"):
        return  # no number can be read, and none of Triton's launches is to be recorded
    of = dict(zip(copied, copies, strict=True))
    lists = zip(parameters, gradients, exp_avgs, exp_avg_sqs, steps, strict=True)
    slots = [Slot(*each, of.get(i)) for i, each in enumerate(lists)]
    rates = Rates(lr, beta1, beta2, eps)
    if launcher != NATIVELY:
        _launchers[launcher].update(slots, rates, Scaling(found_inf))
    elif found_inf is None or found_inf.item() == 0:
        narrow = parameters[0].dtype == torch.float32 and native_available()
        (update_native if narrow else update_reference)(slots, rates, 1.0)


update = register(
    "adam(Tensor(a!)[] parameters, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] steps, Tensor(e!)[] copies, int[] copied, Tensor[] gradients, "
    "Tensor? found_inf, float lr, float beta1, float beta2, float eps, int launcher) -> ()",
    _update,
)
"""The operation, on lists: `copied` tells whose the copies are, `launcher` is `launcher_of`'s
or `NATIVELY`."""
