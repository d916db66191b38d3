"""Adam for all parameters of a network in one launch, without moving any of them.

    m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2        t = step + 1
    p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

fp32 throughout; g may be bf16 or fp16, and a working copy of p in bf16 or fp16 is rounded in the
same pass. A program updates one chunk of one tensor, which it finds by the addresses of a table on
the device. The last program to finish increments the step counters, when all have read them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastinfogan_kernels.adam.multi_tensor import CHUNK, FIELDS, AddressTable, TensorGroup
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import is_recording, launch, native_available, run_native
from fastinfogan_kernels.runtime.registry import register

PART = 256
"""Elements updated at a time where a chunk is incomplete or an address is unaligned."""
OVERFLOWED = 1 << 24
"""Flag in a non-finite count, above the count of rows: scaled gradients overflowed."""


@dataclass(frozen=True)
class Hyperparameters:
    """Adam's hyperparameters.

    Attributes:
        lr: the learning rate; a number, or an fp32 tensor of one element, which the kernel reads
            on the device.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
        eps: added to the root of the latter.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float

    @property
    def scalars(self) -> tuple[float, ...]:
        """beta, 1 - beta and log beta of both, and eps; in double, rounded when passed."""
        logs = [math.log(beta) if beta > 0 else -math.inf for beta in (self.beta1, self.beta2)]
        return (
            self.beta1, 1 - self.beta1, logs[0], self.beta2, 1 - self.beta2, logs[1], self.eps,
        )  # fmt: skip


class GradScaling(NamedTuple):
    """What a gradient scaler gives to an update.

    Attributes:
        found_inf: one element: if not 0, nothing is updated. None: update.
        grad_scale: fp32, one element: gradients are divided by it. None: 1.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None


# --- reference and C++ ---------------------------------------------------------------------------


def update_reference(
    groups: Sequence[TensorGroup], hyper: Hyperparameters, grad_scale: float
) -> None:
    """Update parameters, moments, working copies and step counters in plain torch."""
    for g in groups:
        g.step.add_(1)
        t = g.step.item()
        gradient = g.gradient.to(g.parameter.dtype) / grad_scale
        g.exp_avg.lerp_(gradient, 1 - hyper.beta1)
        g.exp_avg_sq.mul_(hyper.beta2).addcmul_(gradient, gradient, value=1 - hyper.beta2)
        root = math.sqrt(1 - hyper.beta2**t)
        denominator = (g.exp_avg_sq.sqrt() / root).add_(hyper.eps)
        rate = float(hyper.lr) / (1 - hyper.beta1**t)
        g.parameter.addcdiv_(g.exp_avg, denominator, value=-rate)
        if g.working_copy is not None:
            g.working_copy.copy_(g.parameter)


def update_native(groups: Sequence[TensorGroup], hyper: Hyperparameters, grad_scale: float) -> None:
    """Update as `update_reference` does, in C++; one call for all parameters at the same step."""
    by_step: dict[float, list[TensorGroup]] = {}
    for group in groups:
        by_step.setdefault(group.step.item(), []).append(group)
    for step, same in by_step.items():
        run_native(
            "adam",
            [g.parameter.detach() for g in same],
            [g.gradient for g in same],
            [g.exp_avg for g in same],
            [g.exp_avg_sq for g in same],
            [None if g.working_copy is None else g.working_copy.detach() for g in same],
            float(hyper.lr),
            hyper.beta1,
            hyper.beta2,
            hyper.eps,
            step + 1,
            grad_scale,
        )
    torch._foreach_add_([g.step for g in groups], 1)


def _find_overflow(gradients: Sequence[Tensor], non_finite: Tensor) -> None:
    if not all(bool(g.isfinite().all()) for g in gradients):
        non_finite.bitwise_or_(OVERFLOWED)


# --- kernels -------------------------------------------------------------------------------------


@triton.jit
def expm1(x):
    """Return exp(x) - 1 for x <= 0 in fp32, with a relative error under 3e-7.

    1 - beta^t is -expm1(t log beta); computed directly, at beta 0.999 and t 1, it has an error of
    6e-5, and so has the update.
    """
    series = 1.0 + x * (1.0 / 12)
    for k in tl.static_range(11, 1, -1):
        series = 1.0 + x * series * (1.0 / k)
    return tl.where(x > -1.0, x * series, tl.exp(x) - 1.0)


@triton.jit
def corrections(step_ptr, lr, log_beta1, log_beta2, LR_ON_DEVICE: tl.constexpr):
    """Return lr / (1 - beta1^t) and sqrt(1 - beta2^t) of the update after `step` others."""
    if LR_ON_DEVICE:
        lr = tl.load(lr)
    t = tl.load(step_ptr) + 1.0
    return lr / -expm1(t * log_beta1), tl.sqrt_rn(-expm1(t * log_beta2))


@triton.jit
def update_elements(p, g, m, v, rate, root, beta1, rest1, beta2, rest2, eps):
    """Return the new p, m and v, fp32; `rate` and `root` are `corrections`, rest is 1 - beta."""
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    return p - rate * (m / (tl.sqrt_rn(v) / root + eps)), m, v


@triton.jit
def _load(address, at, elements, TYPE: tl.constexpr, WHOLE: tl.constexpr):
    """Load a chunk as fp32. WHOLE: no mask is needed, and the address is a multiple of 16 bytes.

    The alignment hint must be given where the pointer is made; on an argument it would be lost.
    """
    if WHOLE:
        value = tl.load(tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16) + at)
    else:
        ptr = address.to(tl.pointer_type(TYPE))
        value = tl.load(ptr + at, mask=at < elements, other=0.0)
    return value.to(tl.float32)


@triton.jit
def _load_gradient(address, at, elements, kind, WHOLE: tl.constexpr):
    """Load a chunk as `_load` does, of the dtype KINDS[kind]."""
    if kind == 0:
        g = _load(address, at, elements, tl.float32, WHOLE)
    elif kind == 1:
        g = _load(address, at, elements, tl.bfloat16, WHOLE)
    else:
        g = _load(address, at, elements, tl.float16, WHOLE)
    return g


@triton.jit
def _store(address, at, value, elements, TYPE: tl.constexpr, WHOLE: tl.constexpr):
    """Round and store a chunk; arguments as `_load`'s."""
    if WHOLE:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16) + at, value.to(TYPE))
    else:
        ptr = address.to(tl.pointer_type(TYPE))
        tl.store(ptr + at, value.to(TYPE), mask=at < elements)


@triton.jit
def _update_part(
    entry, at, elements, inverse_scale, rate, root, beta1, rest1, beta2, rest2, eps,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Update the elements `at` of the tensor whose row of the table is `entry`."""
    p_at, g_at, m_at, v_at = (
        tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3),
    )  # fmt: skip
    copy_at, g_kind, copy_kind = tl.load(entry + 5), tl.load(entry + 7), tl.load(entry + 8)
    g = _load_gradient(g_at, at, elements, g_kind, WHOLE)
    p, m, v = update_elements(
        _load(p_at, at, elements, tl.float32, WHOLE), g * inverse_scale,
        _load(m_at, at, elements, tl.float32, WHOLE), _load(v_at, at, elements, tl.float32, WHOLE),
        rate, root, beta1, rest1, beta2, rest2, eps,
    )  # fmt: skip
    _store(p_at, at, p, elements, tl.float32, WHOLE)
    _store(m_at, at, m, elements, tl.float32, WHOLE)
    _store(v_at, at, v, elements, tl.float32, WHOLE)
    if copy_kind == 1:
        _store(copy_at, at, p, elements, tl.bfloat16, WHOLE)
    elif copy_kind == 2:
        _store(copy_at, at, p, elements, tl.float16, WHOLE)


@triton.jit(do_not_specialize=["count_skipped"])
def adam_kernel(
    table_ptr,  # int64: (TENSORS, FIELDS), then (CHUNKS): see `AddressTable`
    counters_ptr,  # int32 (2): arrival counter; skipped updates
    found_inf_ptr,  # fp32 (1) or None: if not 0, nothing is updated
    grad_scale_ptr,  # fp32 (1) or None: gradients are divided by it
    lr,  # fp32 () on the device, or a number
    beta1, rest1, log_beta1, beta2, rest2, log_beta2, eps,  # rest is 1 - beta
    count_skipped,  # added to the skipped updates if this one is skipped
    TENSORS, CHUNKS,
    LR_ON_DEVICE: tl.constexpr, FIELDS: tl.constexpr, CHUNK: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """Update all tensors; see the module. Grid: (chunks of all tensors, 1 if there are none,)."""
    good = True
    if found_inf_ptr is not None:
        good = tl.load(found_inf_ptr) == 0.0
    inverse_scale = 1.0
    if grad_scale_ptr is not None:
        inverse_scale = 1.0 / tl.load(grad_scale_ptr)
    if good & (tl.program_id(0) < CHUNKS):
        chunk = tl.load(table_ptr + TENSORS * FIELDS + tl.program_id(0))
        entry = table_ptr + (chunk >> 32) * FIELDS
        start = (chunk & 0xFFFFFFFF) * CHUNK
        elements = tl.load(entry + 6)
        step_ptr = tl.load(entry + 4).to(tl.pointer_type(tl.float32))
        rate, root = corrections(step_ptr, lr, log_beta1, log_beta2, LR_ON_DEVICE)
        if (start + CHUNK <= elements) & (tl.load(entry + 9) != 0):
            _update_part(
                entry, start + tl.arange(0, CHUNK), elements, inverse_scale, rate, root,
                beta1, rest1, beta2, rest2, eps, True,
            )  # fmt: skip
        else:
            # In parts: masked, unaligned loads take a register of address for each value.
            for first in range(start, min(start + CHUNK, elements), PART):
                _update_part(
                    entry, first + tl.arange(0, PART), elements, inverse_scale, rate, root,
                    beta1, rest1, beta2, rest2, eps, False,
                )  # fmt: skip
    # The last program to arrive knows that every other has read its step counter.
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr, 1) == tl.num_programs(0) - 1:
        tl.store(counters_ptr, 0)
        if good:
            for first in range(0, TENSORS, 32):
                tensor = first + tl.arange(0, 32)
                ok = tensor < TENSORS
                address = tl.load(table_ptr + tensor * FIELDS + 4, mask=ok, other=0)
                step_ptrs = address.to(tl.pointer_type(tl.float32))
                tl.store(step_ptrs, tl.load(step_ptrs, mask=ok, other=0.0) + 1.0, mask=ok)
        else:
            tl.store(counters_ptr + 1, tl.load(counters_ptr + 1) + count_skipped)


@triton.jit
def overflow_kernel(
    table_ptr,  # int64: (TENSORS, FIELDS), then (CHUNKS): see `AddressTable`
    non_finite_ptr,  # int32 (1): FLAG is set if a gradient is a NaN or an infinity
    TENSORS, CHUNKS,
    FLAG: tl.constexpr, FIELDS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Check all gradients. Grid: (chunks of all tensors, or 1 if there are none,)."""
    if tl.program_id(0) < CHUNKS:
        chunk = tl.load(table_ptr + TENSORS * FIELDS + tl.program_id(0))
        entry = table_ptr + (chunk >> 32) * FIELDS
        at = (chunk & 0xFFFFFFFF) * CHUNK + tl.arange(0, CHUNK)
        g_at, elements, kind = tl.load(entry + 1), tl.load(entry + 6), tl.load(entry + 7)
        g = _load_gradient(g_at, at, elements, kind, False)
        non_finite = ((tl.abs(g) < float("inf")) == 0).to(tl.int32)
        if tl.max(non_finite, axis=0) != 0:
            tl.atomic_or(non_finite_ptr, FLAG)


# --- launches ------------------------------------------------------------------------------------


class MultiTensorAdam:
    """Adam on one device, one launch for a list of parameters.

    Args:
        device: of all tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._table = AddressTable(device)
        self._counters = torch.zeros(2, dtype=torch.int32, device=device)

    def reserve(self, captures: int) -> None:
        """Prepare, at the next update, for this many updates captured in CUDA graphs after it."""
        self._table.reserve(captures)

    @property
    def skipped(self) -> int:
        """Updates skipped because of found_inf; synchronises with the device."""
        return int(self._counters[1].item())

    def find_overflow(self, groups: Sequence[TensorGroup], non_finite: Tensor) -> None:
        """Set `OVERFLOWED` in a non-finite count if a gradient holds a NaN or an infinity.

        Args:
            groups: as in the update that follows, so that both use one table.
            non_finite: int32 (1,).
        """
        table, chunks = self._table.of(groups)
        launch(
            overflow_kernel,
            (max(chunks, 1),),
            table,
            non_finite,
            len(groups),
            chunks,
            FLAG=OVERFLOWED,
            FIELDS=FIELDS,
            CHUNK=CHUNK,
            num_warps=4,
            read=(*[g.gradient for g in groups], table),
            written=(non_finite,),
        )

    def update(
        self,
        groups: Sequence[TensorGroup],
        hyper: Hyperparameters,
        scaling: GradScaling,
        *,
        count_skipped: bool = True,
    ) -> None:
        """Update parameters, moments, working copies and step counters; does not synchronise.

        Args:
            groups: fp32 parameters and their tensors.
            hyper: Adam's hyperparameters.
            scaling: of the gradients.
            count_skipped: count this update if it is skipped; False for an optimizer's other
                parameter groups.

        Raises:
            InputError: the tensors of a group do not have the same memory layout.
        """
        table, chunks = self._table.of(groups)
        operands = [t for g in groups for t in (g.parameter, g.exp_avg, g.exp_avg_sq)]
        steps = [g.step for g in groups]
        launch(
            adam_kernel,
            (max(chunks, 1),),
            table,
            self._counters,
            scaling.found_inf,
            scaling.grad_scale,
            hyper.lr,
            *hyper.scalars,
            int(count_skipped),
            len(groups),
            chunks,
            LR_ON_DEVICE=isinstance(hyper.lr, Tensor),
            FIELDS=FIELDS,
            CHUNK=CHUNK,
            PART=PART,
            num_warps=4,
            read=(*operands, *[g.gradient for g in groups], *steps, table),
            written=(*operands, *[g.working_copy for g in groups], *steps),
        )


# --- operation -----------------------------------------------------------------------------------

NO_LAUNCHER = -1
"""Instead of a launcher's number: update in C++ or plain torch."""
_launchers: WeakValueDictionary[int, MultiTensorAdam] = WeakValueDictionary()


def make_launcher(device: torch.device) -> tuple[MultiTensorAdam, int]:
    """Make a launcher for a list of parameters and its number for `adam_op`; keep a reference."""
    launcher = MultiTensorAdam(device)
    number = id(launcher)
    _launchers[number] = launcher
    return launcher, number


@register(
    "adam",
    mutates_args=(
        "parameters", "exp_avgs", "exp_avg_sqs", "steps", "working_copies", "found_inf",
    ),
)  # fmt: skip
def adam_op(
    parameters: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    steps: list[Tensor], working_copies: list[Tensor], copied: list[int],
    gradients: list[Tensor], found_inf: Tensor | None, grad_scale: Tensor | None, lr: float,
    beta1: float, beta2: float, eps: float, launcher: int,
) -> None:  # fmt: skip
    """Update lists of tensors.

    `copied` holds the index of each working copy's parameter; `launcher` is a number of
    `make_launcher` or `NO_LAUNCHER`. With a grad_scale, non-finite gradients set `OVERFLOWED` in
    found_inf, int32 (1,), first.
    """
    device = parameters[0].device
    if is_recording() and (launcher == NO_LAUNCHER or device.type != "meta"):
        return  # no number can be read, and no launch of Triton is to be recorded
    copy_of = dict(zip(copied, working_copies, strict=True))
    lists = zip(parameters, gradients, exp_avgs, exp_avg_sqs, steps, strict=True)
    groups = [TensorGroup(*each, copy_of.get(i)) for i, each in enumerate(lists)]
    hyper = Hyperparameters(lr, beta1, beta2, eps)
    if launcher != NO_LAUNCHER:
        if grad_scale is not None:
            assert found_inf is not None
            _launchers[launcher].find_overflow(groups, found_inf)
        _launchers[launcher].update(groups, hyper, GradScaling(found_inf, grad_scale))
        return
    if grad_scale is not None:
        assert found_inf is not None
        _find_overflow(gradients, found_inf)
    if found_inf is None or found_inf.item() == 0:
        fp32_on_cpu = device.type == "cpu" and parameters[0].dtype == torch.float32
        update = update_native if fp32_on_cpu and native_available() else update_reference
        update(groups, hyper, 1.0 if grad_scale is None else grad_scale.item())
