"""Clocks for a CPU and a GPU.

A GPU's short kernels cannot be timed launch by launch: the host's part, or the events around it,
would be most of the time. They are captured into a CUDA graph, whose replays are timed.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import torch

Run = Callable[[], object]

_LONG_ENOUGH = {"cpu": 2e-3, "cuda": 1e-3}
"""Seconds of a timed stretch: clocks, events and the start of a replay are then below a percent."""
_STEADY = {"cpu": 2e-3, "cuda": 20e-3}
"""The same of runs one after the other: how the first one starts must not count."""
_COLD_FROM = 50e-6
"""Seconds of a GPU's run from which the cost of flushing the cache is small beside it."""


class Stretch:
    """A run, ready to be timed by the host's clock.

    Attributes:
        repeat: runs in a timed stretch.
        cache: "cold" if the GPU's L2 is flushed before each run, else "warm".
        captured: whether a CUDA graph is what is timed.
    """

    cache: Literal["warm", "cold"] = "warm"
    captured: bool = False

    def __init__(self, run: Run, repeat: int = 1) -> None:
        self.run, self.repeat = run, repeat

    def seconds(self) -> float:
        """Time the stretch; the seconds of one run."""
        run = self.run
        start = time.perf_counter()
        for _ in range(self.repeat):
            run()
        return (time.perf_counter() - start) / self.repeat

    def leave_warm(self) -> None:
        """Flush no cache from now on: something beside it is too short for that."""

    def release(self) -> None:
        """Release what was captured."""


class Clock:
    """The host's clock: whole runs, one at a time and never warmed up; processes, for one.

    Attributes:
        device: where runs take place.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, run: Run, *, steady: bool = False) -> Stretch:
        """Warm up, and choose how many runs are timed at once.

        Args:
            run: what is timed.
            steady: run after run as in training: never captured, the cache never flushed.
        """
        return Stretch(run)


class CpuClock(Clock):
    """The host's clock around runs that are warmed up and repeated."""

    def prepare(self, run: Run, *, steady: bool = False) -> Stretch:
        run()
        return Stretch(run, _repeats(Stretch(run).seconds(), self.device))


class GpuClock(Clock):
    """CUDA events around replays of a graph, or around calls where nothing can be captured."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        size = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(2 * max(size, 1 << 22), dtype=torch.uint8, device=device)

    def flush(self) -> None:
        self._flush.zero_()

    def prepare(self, run: Run, *, steady: bool = False) -> Stretch:
        for _ in range(3):
            run()
        return _GpuStretch(self, run, steady=steady)

    def timed(self, run: Run) -> float:
        """Return the seconds between two events around a call."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def clock_for(device: torch.device) -> Clock:
    return GpuClock(device) if device.type == "cuda" else CpuClock(device)


class _GpuStretch(Stretch):
    def __init__(self, clock: GpuClock, run: Run, *, steady: bool) -> None:
        super().__init__(run)
        self._clock, self._once = clock, clock.timed(run)
        self._graph: torch.cuda.CUDAGraph | None = None
        if steady:
            self.repeat = _repeats(self._once, clock.device, steady=True)
            return
        self._capture()
        if self._graph is not None:
            self._graph.replay()
            self._once = clock.timed(self._graph.replay)
        self.cache = "cold"
        if self._once <= _COLD_FROM:
            self.leave_warm()

    def _capture(self) -> None:
        self._graph = _captured(self.run, self.repeat)
        self.captured = self._graph is not None

    def leave_warm(self) -> None:
        if self.cache == "warm":
            return
        self.cache = "warm"
        self.repeat = _repeats(self._once, self._clock.device)
        if self.repeat > 1 and self.captured:
            self._capture()

    def seconds(self) -> float:
        if self.cache == "cold":
            self._clock.flush()
        return self._clock.timed(self._all) / self.repeat

    def _all(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        for _ in range(self.repeat):
            self.run()

    def release(self) -> None:
        self._graph = None


def _repeats(once: float, device: torch.device, *, steady: bool = False) -> int:
    long_enough = (_STEADY if steady else _LONG_ENOUGH)[device.type]
    return max(1, min(1000, round(long_enough / max(once, 1e-7))))


def _captured(run: Run, repeat: int) -> torch.cuda.CUDAGraph | None:
    """Capture so many runs as one graph; None if CUDA cannot."""
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream = torch.cuda.current_stream()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            for _ in range(repeat):
                run()
    except RuntimeError:  # CUDA's refusal: a copy from the host, a wait for the device
        # torch leaves the capture's stream current, and its allocator where it was.
        torch.cuda.set_stream(stream)
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        # Its generator still counts as captured and would refuse to draw, and every graph captured
        # before would refuse to replay. Another capture ends that.
        with (
            suppress(RuntimeError),
            torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"),
        ):
            torch.zeros(1, device="cuda")
        torch.cuda.set_stream(stream)
        torch.cuda.synchronize()
        return None
    return graph
