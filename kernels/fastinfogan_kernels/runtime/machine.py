"""What launch parameters depend on: the GPU, and how its matrix units multiply."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch

from fastinfogan_kernels.runtime.lang import triton


def limits(registers: int | None) -> dict[str, int]:
    """A launch's parameters for what a thread may have; AMD's compiler is told nothing."""
    return {} if registers is None else {"maxnreg": registers}


def power_of_two(size: int, low: int, high: int) -> int:
    """The smallest power of two that holds `size`, within bounds."""
    return max(low, min(int(triton.next_power_of_2(max(size, 1))), high))


def precision(dtype: torch.dtype) -> str:
    """How a product of this dtype multiplies: fp32 by TF32 only where torch is told to."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


@dataclass(frozen=True)
class Machine:
    """What the rule must know of a GPU.

    Attributes:
        shared: bytes of shared memory that a program may have.
        processors: how many programs run side by side.
        warpgroups: it has matrix instructions for tiles of 64 rows and up to 256 columns, whose
            accumulators do not crowd the registers (wgmma, tcgen05).
        wide_warps: threads of a warp are 64, not 32.
    """

    shared: int
    processors: int
    warpgroups: bool = True
    wide_warps: bool = False

    @property
    def registers(self) -> int | None:
        """What a thread may have, for a tile.

        Not told, NVIDIA's assembler spills a few words of some kernels to fit one more program on
        a processor, which the grids here seldom have.
        """
        return None if self.wide_warps else 255

    @property
    def limits(self) -> dict[str, int]:
        """The same as a launch's parameters."""
        return limits(self.registers)

    def depth(self, *, wide: bool) -> int:
        """Of a step, at the most; without matrix instructions values are many registers."""
        if self.wide_warps:
            return 32
        return 16 if wide else 64

    @property
    def columns(self) -> int:
        """Columns of a tile of 16-bit values at the most."""
        return 128 if self.warpgroups else 64


MACHINES = {
    "sm_80": Machine(166_912, 108, warpgroups=False),
    "sm_90": Machine(232_448, 132),
    "sm_100": Machine(232_448, 148),
    "gfx942": Machine(65_536, 304, warpgroups=False, wide_warps=True),
}
"""The targets that the kernels are compiled for ahead of time: A100, H100, B200, MI300."""

_machine: ContextVar[Machine | None] = ContextVar("machine", default=None)


@contextmanager
def assuming(machine: Machine) -> Iterator[None]:
    """Choose as for this machine, whatever the tensors lie on."""
    token = _machine.set(machine)
    try:
        yield
    finally:
        _machine.reset(token)


def machine_of(device: torch.device) -> Machine:
    """The machine that tensors lie on; an H100 where there is none."""
    return _machine.get() or (_properties(device) if device.type == "cuda" else MACHINES["sm_90"])


@cache
def _properties(device: torch.device) -> Machine:
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Machine(65_536, found.multi_processor_count, warpgroups=False, wide_warps=True)
    shared = int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))
    return Machine(shared, found.multi_processor_count, warpgroups=found.major >= 9)
