"""What the machine itself can do, measured in the same run: no share is told of a data sheet's."""

import time
from dataclasses import asdict, dataclass, field

import torch

from bench.timing.clock import CpuClock, GpuClock, Run
from fastinfogan.engine.precision import PRECISIONS, ComputedIn

_SIDE = {"cpu": 2048, "cuda": 8192}
_COPIED = {"cpu": 256 << 20, "cuda": 4 << 30}  # bytes: beyond any cache
_ROUNDS = 12
_AWAKE = 0.3
"""Seconds of it at the least: a GPU that was idle is not at its full clock at once."""


@dataclass
class Roofline:
    """The two rates that no program exceeds by much; each is measured when first asked for.

    Attributes:
        device: whose.
        flops: FLOP/s of a large square product, by precision, of those asked for.
        copy: bytes/s of a large copy on the device, bytes read plus bytes written.
    """

    device: torch.device
    flops: dict[ComputedIn, float] = field(default_factory=dict)
    copy: float = 0.0

    def gemm_rate(self, precision: ComputedIn) -> float:
        """FLOP/s of a square product that fits no cache and fills the machine: the fastest of some.

        Of random numbers: zeros multiply faster than what networks hold.
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
        """Bytes/s, read plus written."""
        if not self.copy:
            size = _COPIED[self.device.type]
            source = torch.ones(size, dtype=torch.uint8, device=self.device)
            target = torch.zeros_like(source)
            self.copy = 2 * size / self._fastest(lambda: target.copy_(source))
        return self.copy

    def again(self) -> None:
        """Measure once more what was measured: on a busy machine the better of the two is right."""
        before = Roofline(self.device, dict(self.flops), self.copy)
        self.flops.clear()
        for precision, rate in before.flops.items():
            self.flops[precision] = max(rate, self.gemm_rate(precision))
        if before.copy:
            self.copy = 0.0
            self.copy = max(before.copy, self.copy_rate())

    def share(self, precision: ComputedIn, flops: int, nbytes: int, seconds: float) -> float | None:
        """The floor over what was taken, or None for what has neither FLOPs nor bytes."""
        return self.floor(precision, flops, nbytes) / seconds if flops or nbytes else None

    def floor(self, precision: ComputedIn, flops: int, nbytes: int) -> float:
        """Seconds below which nothing with so many FLOPs and bytes can be."""
        return max(
            flops / self.gemm_rate(precision) if flops else 0.0,
            nbytes / self.copy_rate() if nbytes else 0.0,
        )

    def to_dict(self) -> dict[str, object]:
        """What was measured, for JSON."""
        found = asdict(self)
        return {**found, "device": self.device.type}

    def _fastest(self, run: Run) -> float:
        clock = GpuClock(self.device) if self.device.type == "cuda" else CpuClock(self.device)
        stretch = clock.prepare(run)
        begun, found, rounds = time.perf_counter(), float("inf"), 0
        while rounds < _ROUNDS or time.perf_counter() - begun < _AWAKE:
            found = min(found, stretch.seconds())  # others only ever make it slower
            rounds += 1
        stretch.release()
        return found
