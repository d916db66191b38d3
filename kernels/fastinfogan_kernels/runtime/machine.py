"""Properties of the GPU that launch parameters depend on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch

from fastinfogan_kernels.runtime.lang import triton


def limits(registers: int | None) -> dict[str, int]:
    """Return the launch parameter that bounds a thread's registers; AMD's compiler has none."""
    return {} if registers is None else {"maxnreg": registers}


def power_of_two(size: int, low: int, high: int) -> int:
    """Return the smallest power of two not below `size`, within bounds."""
    return max(low, min(int(triton.next_power_of_2(max(size, 1))), high))


def precision(dtype: torch.dtype) -> str:
    """Return tl.dot's input precision for a dtype: TF32 for fp32 only where torch is set to it."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


@dataclass(frozen=True)
class Machine:
    """The properties of a GPU that the tiling rules use.

    Attributes:
        shared: bytes of shared memory that a program may have.
        processors: streaming multiprocessors.
        warpgroups: whether it has matrix instructions for tiles of 64 rows and up to 256 columns,
            with room for accumulators (wgmma, tcgen05).
        wide_warps: whether a warp has 64 threads, not 32.
    """

    shared: int
    processors: int
    warpgroups: bool = True
    wide_warps: bool = False

    @property
    def registers(self) -> int | None:
        """The bound on a thread's registers.

        Without one NVIDIA's assembler spills a few words of some kernels to fit one more program on
        a multiprocessor, which the grids here seldom fill.
        """
        return None if self.wide_warps else 255

    @property
    def limits(self) -> dict[str, int]:
        """The launch parameters that bound registers."""
        return limits(self.registers)

    def depth(self, *, wide: bool) -> int:
        """Return a step's depth at most; without matrix instructions values take many registers."""
        if self.wide_warps:
            return 32
        return 16 if wide else 64

    @property
    def columns(self) -> int:
        """Columns of a tile of 16-bit values at most."""
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
    """Choose launch parameters for this machine, whatever device the tensors are on."""
    token = _machine.set(machine)
    try:
        yield
    finally:
        _machine.reset(token)


def machine_of(device: torch.device) -> Machine:
    """Return the machine of a device; for a device that is no GPU, an H100's."""
    return _machine.get() or (_properties(device) if device.type == "cuda" else MACHINES["sm_90"])


@cache
def _properties(device: torch.device) -> Machine:
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Machine(65_536, found.multi_processor_count, warpgroups=False, wide_warps=True)
    shared = int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))
    return Machine(shared, found.multi_processor_count, warpgroups=found.major >= 9)
