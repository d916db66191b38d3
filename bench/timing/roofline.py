"""The machine's roofline, measured in the same run rather than taken from a data sheet."""

import time
from dataclasses import asdict, dataclass, field

import torch

from bench.timing.clock import Run, clock_for
from fastinfogan.engine.config import PRECISIONS, ComputedIn

_SIDE = {"cpu": 2048, "cuda": 8192}
_COPIED = {"cpu": 256 << 20, "cuda": 4 << 30}  # bytes: beyond any cache
_ROUNDS = 12
_AWAKE = 0.3
"""Seconds at the least: an idle GPU does not run at its full clock at once."""


@dataclass
class Roofline:
    """The two rates that no program exceeds by much; each is measured at its first use.

    Attributes:
        device: whose.
        flops: FLOP/s of a large square product, by precision, of those asked for.
        copy: bytes/s of a large copy on the device, bytes read plus bytes written.
    """

    device: torch.device
    flops: dict[ComputedIn, float] = field(default_factory=dict)
    copy: float = 0.0

    def gemm_rate(self, precision: ComputedIn) -> float:
        """Measure the FLOP/s of a square product that fits no cache and fills the machine.

        Of random numbers: zeros multiply faster than weights and activations.
        """
        if precision not in self.flops:
            side = _SIDE[self.device.type]
            how = PRECISIONS[precision]
            a, b = (torch.randn(side, side, device=self.device).to(how.computed) for _ in range(2))
            out = torch.empty_like(a)
            with how.arithmetic():
                seconds = self._fastest(lambda: torch.mm(a, b, out=out))
            self.flops[precision] = 2 * side**3 / seconds
        return self.flops[precision]

    def copy_rate(self) -> float:
        if not self.copy:
            size = _COPIED[self.device.type]
            source = torch.ones(size, dtype=torch.uint8, device=self.device)
            target = torch.zeros_like(source)
            self.copy = 2 * size / self._fastest(lambda: target.copy_(source))
        return self.copy

    def remeasure(self) -> None:
        """Measure again what was measured, and take the better rate of a busy machine."""
        before = Roofline(self.device, dict(self.flops), self.copy)
        self.flops.clear()
        for precision, rate in before.flops.items():
            self.flops[precision] = max(rate, self.gemm_rate(precision))
        if before.copy:
            self.copy = 0.0
            self.copy = max(before.copy, self.copy_rate())

    def share(self, precision: ComputedIn, flops: int, nbytes: int, seconds: float) -> float | None:
        """Return the share of the roofline that was reached; None without FLOPs and bytes."""
        return self.minimum(precision, flops, nbytes) / seconds if flops or nbytes else None

    def minimum(self, precision: ComputedIn, flops: int, nbytes: int) -> float:
        """Return the least seconds for so many FLOPs and bytes."""
        return max(
            flops / self.gemm_rate(precision) if flops else 0.0,
            nbytes / self.copy_rate() if nbytes else 0.0,
        )

    def to_dict(self) -> dict[str, object]:
        found = asdict(self)
        return {**found, "device": self.device.type}

    def _fastest(self, run: Run) -> float:
        stretch = clock_for(self.device).prepare(run)
        begun, found, rounds = time.perf_counter(), float("inf"), 0
        while rounds < _ROUNDS or time.perf_counter() - begun < _AWAKE:
            found = min(found, stretch.seconds())  # others only ever make it slower
            rounds += 1
        stretch.release()
        return found
