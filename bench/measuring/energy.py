"""What a run takes out of the socket, where the GPU counts it."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from bench.measuring.clock import Run

_STRETCH = 0.5
"""Seconds of work between two readings: the counter moves some ten times a second."""


def joules(run: Run, seconds: float, device: torch.device) -> float | None:
    """Joules of one run, or None where nobody counts them.

    Args:
        run: what is weighed; run for half a second.
        seconds: that it takes, about.
        device: where.
    """
    counter = _counter(device)
    if counter is None:
        return None
    count = max(3, round(_STRETCH / max(seconds, 1e-6)))
    torch.cuda.synchronize(device)
    time.sleep(0.1)  # the reading before belongs to what ran before
    before = counter()
    for _ in range(count):
        run()
    torch.cuda.synchronize(device)
    return (counter() - before) / count


def _counter(device: torch.device) -> Callable[[], float] | None:
    """Joules since the driver was loaded."""
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
