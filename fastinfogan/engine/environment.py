"""What a run ran on: versions and hardware, for config.json and `fastinfogan info`."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from fastinfogan import __version__
from fastinfogan.engine.precision import cpu_multiplies
from fastinfogan.errors import InputError
from fastinfogan_kernels.runtime.backend import native_status

_PACKAGES = ("torch", "triton", "numpy", "scipy", "safetensors", "mlxtend")


def versions() -> dict[str, str]:
    """Versions of fastinfogan, Python and the packages that decide numbers."""
    found = {"fastinfogan": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_model() -> str:
    """The CPU's name as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def choose_device(name: str) -> torch.device:
    """Settle a device: "auto" is the first GPU, or the CPU where there is none.

    Raises:
        InputError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("`device='cuda'`: this machine has no usable GPU; use cpu or auto")
    if name not in ("cpu", "cuda"):
        raise InputError(f"no device {name!r}; there are auto, cpu and cuda")
    return torch.device(name)


def hardware() -> dict[str, str]:
    """CPU, threads, bf16 and GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_model(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cpu bf16": cpu_multiplies("bf16") or "none",
        "cpu fp16": cpu_multiplies("fp16") or "none",
        "gpu": ", ".join(gpus) or "none",
        "native kernels": native_status(),
    }
