"""Number formats that the networks compute in; weights, statistics and losses stay in fp32."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from fastinfogan.errors import InputError

PrecisionName = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
ComputedIn = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]
_Networks = TypeVar("_Networks", bound=nn.Module)


@dataclass(frozen=True)
class Precision:
    """A way of computing.

    Attributes:
        name: fp32, tf32, bf16, fp16, or fp64 (for parity tests).
        dtype: of weights, optimizer state and losses.
        compute: of activations, convolutions and matrix products, if another than `dtype`.
        scaled: whether the losses are scaled, lest gradients round to 0.
    """

    name: ComputedIn
    dtype: torch.dtype = torch.float32
    compute: torch.dtype | None = None
    scaled: bool = False

    @property
    def computed(self) -> torch.dtype:
        """The dtype of activations between blocks, and of the weights they are computed with."""
        return self.compute or self.dtype

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Round the operands of fp32 products to TF32 in tf32, and in no other precision.

        This is a setting of the process, restored afterwards. What is compiled or captured inside
        retains it.
        """
        rounded = self.name == "tf32"
        switches = _switches()
        before = [switch.fp32_precision for switch in switches]
        cudnn: Any = torch.backends.cudnn
        name, allowed = "highest", True  # torch's own
        with suppress(RuntimeError):  # the switches are set to what has no name
            name = torch.get_float32_matmul_precision()
        with suppress(RuntimeError):
            allowed = cudnn.allow_tf32
        try:
            # By name, which our kernels and torch.compile go by; and whatever backends inherit.
            torch.set_float32_matmul_precision("high" if rounded else "highest")
            cudnn.allow_tf32 = rounded
            for switch in switches:
                switch.fp32_precision = "tf32" if rounded else "ieee"
            yield
        finally:
            torch.set_float32_matmul_precision(name)
            cudnn.allow_tf32 = allowed
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value


def _switches() -> tuple[Any, ...]:
    """Where torch keeps how products of fp32 are computed, beside the name of it all."""
    b: Any = torch.backends
    return b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv


FP64: Final = Precision("fp64", torch.float64)
FP32: Final = Precision("fp32")
TF32: Final = Precision("tf32")
BF16: Final = Precision("bf16", compute=torch.bfloat16)
FP16: Final = Precision("fp16", compute=torch.float16, scaled=True)
PRECISIONS: Final = {p.name: p for p in (FP64, FP32, TF32, BF16, FP16)}


_INSTRUCTIONS: Final = {
    "bf16": {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"},
    "fp16": {"amx_fp16": "AMX", "avx512_fp16": "AVX512-FP16", "fphp": "Arm FP16"},
}
"""By the kernel's name of a CPU's feature: ours of the instructions that multiply a format."""


@cache
def cpu_multiplies(name: str) -> str | None:
    """The instruction set by which this CPU multiplies "bf16" or "fp16" matrices, or None."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return None
    return next((ours for flag, ours in _INSTRUCTIONS[name].items() if flag in flags), None)


def _hardware(name: str, device: torch.device) -> str | None:
    """What multiplies matrices of a format on a device, or None if it is emulated or absent."""
    if device.type == "cpu":
        return cpu_multiplies(name) if name in _INSTRUCTIONS else None
    # Tensor cores multiply fp16 since Volta, 7.0; bf16 and TF32 since Ampere, 8.0.
    since = (7, 0) if name == "fp16" else (8, 0)
    has = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= since
    return "the GPU's matrix units" if has else None


def choose_precision(name: PrecisionName, device: torch.device) -> tuple[Precision, str]:
    """Choose a precision for a device.

    Args:
        name: "fp32"; "tf32", fp32 with products of rounded operands; "bf16"; "fp16", with scaled
            losses; or "auto": bf16 where the hardware multiplies it.
        device: where the networks lie.

    Returns:
        The precision and, in a few words, why.

    Raises:
        InputError: no such precision, or not on this device.
    """
    known = get_args(PrecisionName)
    if name not in known:
        raise InputError(f"no precision {name!r}; there are {', '.join(known)}")
    if name == "fp32":
        return FP32, "asked for"
    hardware = _hardware("bf16" if name == "auto" else name, device)
    if name == "auto":
        if hardware:
            return BF16, f"{hardware} multiplies bf16"
        return FP32, f"this {device.type} has no bf16 arithmetic"
    if name == "tf32" and not hardware:
        raise InputError(
            f"`precision='tf32'`: this {device.type} has no TF32, GPUs of compute capability 8.0 "
            "and more have; use fp32 or auto"
        )
    if not hardware:
        why = f"asked for, though this {device.type} emulates {name}: fp32 is faster"
        return PRECISIONS[name], why
    return PRECISIONS[name], "asked for"


def with_working_copies(
    networks: _Networks, dtype: torch.dtype
) -> tuple[_Networks, dict[Tensor, Tensor]]:
    """Copy networks so that they compute with working copies of the master weights.

    Args:
        networks: with the master weights.
        dtype: of the working copies.

    Returns:
        Networks that share all other tensors with the given ones, and the working copy of each
        weight of two or more dimensions, if its dtype is another one.
    """
    copies: dict[Tensor, Tensor] = {
        p: nn.Parameter(p.detach().to(dtype), p.requires_grad)
        for p in networks.parameters()
        if p.dim() > 1 and p.dtype != dtype
    }
    shared = {id(t): t for t in (*networks.parameters(), *networks.buffers())}
    replaced = {id(p): each for p, each in copies.items()}
    return copy.deepcopy(networks, shared | replaced), copies
