"""Adam: the host side of `device.adam`, its C++ twin, and the definition in plain torch.

An update takes a list of `Slot`s, each the tensors of one parameter, and is one launch on a GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastinfogan_kernels.adam.adam_kernels import adam_kernel, overflow_kernel
from fastinfogan_kernels.adam.multi_tensor import CHUNK, FIELDS, AddressTable, Slot
from fastinfogan_kernels.runtime.backend import native_available
from fastinfogan_kernels.runtime.launch import is_recording, launch, run_native
from fastinfogan_kernels.runtime.registry import register

PART = 256
"""Elements that it updates at a time, where the chunk is cut off or an address is odd."""
OVERFLOWED = 1 << 24
"""In a count of problems, beside the rows: gradients that were scaled are not finite."""


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

    def find_overflow(self, slots: Sequence[Slot], problems: Tensor) -> None:
        """Set `OVERFLOWED` in problems, int32 (1,), if a gradient holds a NaN or an infinity.

        The table is the same as that of the update that follows.
        """
        table, chunks = self._table.of(slots)
        launch(
            overflow_kernel,
            (max(chunks, 1),),
            table,
            problems,
            len(slots),
            chunks,
            FLAG=OVERFLOWED,
            FIELDS=FIELDS,
            CHUNK=CHUNK,
            num_warps=4,
            read=(*[s.gradient for s in slots], table),
            written=(problems,),
        )

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


def find_overflow(gradients: Sequence[Tensor], problems: Tensor) -> None:
    """As `OneLaunch.find_overflow`, in plain torch."""
    if not all(bool(g.isfinite().all()) for g in gradients):
        problems.bitwise_or_(OVERFLOWED)


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
    found_inf: Tensor | None, grad_scale: Tensor | None, lr: float, beta1: float, beta2: float,
    eps: float, launcher: int,
) -> None:  # fmt: skip
    device = parameters[0].device
    if is_recording() and (launcher == NATIVELY or device.type != "meta"):
        return  # no number can be read, and none of Triton's launches is to be recorded
    of = dict(zip(copied, copies, strict=True))
    lists = zip(parameters, gradients, exp_avgs, exp_avg_sqs, steps, strict=True)
    slots = [Slot(*each, of.get(i)) for i, each in enumerate(lists)]
    rates = Rates(lr, beta1, beta2, eps)
    if launcher != NATIVELY:
        if grad_scale is not None:
            assert found_inf is not None
            _launchers[launcher].find_overflow(slots, found_inf)
        _launchers[launcher].update(slots, rates, Scaling(found_inf, grad_scale))
        return
    if grad_scale is not None:
        assert found_inf is not None
        find_overflow(gradients, found_inf)
    if found_inf is None or found_inf.item() == 0:
        narrow = (
            device.type == "cpu" and parameters[0].dtype == torch.float32 and native_available()
        )
        divisor = 1.0 if grad_scale is None else grad_scale.item()
        (update_native if narrow else update_reference)(slots, rates, divisor)


update = register(
    "adam(Tensor(a!)[] parameters, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] steps, Tensor(e!)[] copies, int[] copied, Tensor[] gradients, "
    "Tensor(f!)? found_inf, Tensor? grad_scale, float lr, float beta1, float beta2, float eps, "
    "int launcher) -> ()",
    _update,
)
"""The operation, on lists: `copied` tells whose the copies are, `launcher` is `launcher_of`'s
or `NATIVELY`. With a grad_scale, gradients that are not finite are told in found_inf first, int32
(1,), by one more launch."""
