"""In which number format the networks compute. Weights, statistics and losses stay in fp32."""

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypeVar

import torch
from torch import Tensor, nn

from fastinfogan.errors import InputError

PrecisionName = Literal["auto", "fp32", "bf16"]
ComputedIn = Literal["fp32", "bf16", "fp64"]
_Networks = TypeVar("_Networks", bound=nn.Module)


@dataclass(frozen=True)
class Precision:
    """A way of computing.

    Attributes:
        name: fp32, bf16, or fp64 (for parity tests).
        dtype: of weights, optimizer state and losses.
        compute: of maps and of convolutions and matrix products, if another than `dtype`.
    """

    name: ComputedIn
    dtype: torch.dtype = torch.float32
    compute: torch.dtype | None = None

    @property
    def computed(self) -> torch.dtype:
        """Of the maps between the networks' blocks, and of the weights they are computed with."""
        return self.compute or self.dtype


FP64: Final = Precision("fp64", torch.float64)
FP32: Final = Precision("fp32")
BF16: Final = Precision("bf16", compute=torch.bfloat16)


@cache
def cpu_bf16() -> str | None:
    """The instruction set by which this CPU multiplies bf16 matrices, or None."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return None
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
    return next((name for flag, name in names.items() if flag in flags), None)


def choose_precision(name: PrecisionName, device: torch.device) -> tuple[Precision, str]:
    """Settle a precision for a device.

    Args:
        name: "fp32", "bf16", or "auto": bf16 where the hardware multiplies it.
        device: where the networks lie.

    Returns:
        The precision and, in a few words, why.

    Raises:
        InputError: no such precision.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise InputError(f"no precision {name!r}; there are auto, fp32 and bf16")
    if device.type == "cuda":
        hardware = "the GPU's tensor cores" if torch.cuda.is_bf16_supported(False) else None
    else:
        hardware = cpu_bf16()
    if name == "auto":
        if hardware:
            return BF16, f"{hardware} multiplies bf16"
        return FP32, f"this {device.type} has no bf16 arithmetic"
    if name == "bf16" and not hardware:
        return BF16, f"asked for, though this {device.type} emulates bf16: fp32 is faster"
    return (BF16 if name == "bf16" else FP32), "asked for"


def narrowed(networks: _Networks, dtype: torch.dtype) -> tuple[_Networks, dict[Tensor, Tensor]]:
    """Networks that compute with rounded copies of others' weights and share all else with them.

    Args:
        networks: the others.
        dtype: of the copies.

    Returns:
        The networks; and the copy of each weight of a map, if its dtype is another one.
    """
    copies: dict[Tensor, Tensor] = {
        p: nn.Parameter(p.detach().to(dtype), p.requires_grad)
        for p in networks.parameters()
        if p.dim() > 1 and p.dtype != dtype
    }
    shared = {id(t): t for t in (*networks.parameters(), *networks.buffers())}
    replaced = {id(p): each for p, each in copies.items()}
    return copy.deepcopy(networks, shared | replaced), copies
