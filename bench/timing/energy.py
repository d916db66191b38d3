"""The energy of a run, where the GPU counts it."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from bench.timing.clock import Stretch

_LONG = 0.5
"""Seconds of work between two ticks of the counter, of which there are ten or more a second."""
_CHUNK = 5e-3
"""Seconds of work between two readings."""
_PATIENCE = 3.0
"""Seconds in which it must have ticked twice."""


def joules(stretch: Stretch, seconds: float, device: torch.device) -> float | None:
    """Measure the joules of one run; None where there is no counter.

    What was timed is measured, a captured graph as one: small kernels launched one by one would
    wait for the host, and idling would be measured. From tick to tick of the counter.

    Args:
        stretch: what is measured.
        seconds: of one run, about.
        device: where.
    """
    counter = _counter(device)
    if counter is None:
        return None
    chunk = max(1, round(_CHUNK / max(stretch.repeat * seconds, 1e-6)))
    ticks: list[tuple[float, float, int]] = []
    runs, last, begun = 0, counter(), time.perf_counter()
    while time.perf_counter() - begun < _PATIENCE:
        for _ in range(chunk):
            stretch.again()
        torch.cuda.synchronize(device)
        runs += chunk * stretch.repeat
        if (found := counter()) != last:
            last = found
            ticks.append((time.perf_counter(), found, runs))
            # The first one ends a tick of what ran before.
            if len(ticks) > 1 and ticks[-1][0] - ticks[0][0] >= _LONG:
                return (ticks[-1][1] - ticks[0][1]) / (ticks[-1][2] - ticks[0][2])
    return None


def _counter(device: torch.device) -> Callable[[], float] | None:
    """Return a function that reads the joules since the driver was loaded."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    nvml: Any = pynvml
    with suppress(nvml.NVMLError):
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # raises where there is no counter
        return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    return None
