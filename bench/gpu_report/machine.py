"""What the machine is, what is missing on it, and its kernels compiled by all cores beforehand."""

import importlib.util
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.compiled import (
    Share,
    read_lines,
    record,
    record_all,
    record_modules,
    start_workers,
)
from bench.gpu_report.context import Context, FailedError
from bench.gpu_report.workload import FIVE, as_trained, experiment
from fastinfogan.engine.config import hardware, versions
from fastinfogan_kernels.runtime.launch import Launch, native_status
from fastinfogan_kernels.runtime.machine import MACHINES, Machine, machine_of

if TYPE_CHECKING:
    from fastinfogan.engine.config import ComputedIn

OPTIONAL = {
    "tyro": "the command line; the report does without",
    "tensorboard": "events beside metrics.jsonl; the report does without",
    "nvidia.dali": "decoding by DALI; the report decodes nothing",
    "scipy": "c1 as a classifier; no error is reported",
    "safetensors": "checkpoints; resume and the run of MNIST fail",
    "pytest": "the test suite of the kernels; the correctness stage fails",
    "hypothesis": "the same",
    "fastinfogan_kernels._native": "C++ for CPU tensors; the report uses the GPU",
}
_QUERIED = (
    "name,driver_version,pstate,persistence_mode,compute_mode,mig.mode.current,clocks.sm,clocks.mem,"
    "clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,memory.total,memory.used,"
    "utilization.gpu,ecc.mode.current"
)
_ROOT = Path(__file__).parents[2]


def environment(context: Context) -> None:
    """Run the stage; nothing of it takes long."""
    context.run("packages", _packages, context)
    context.run("hardware", hardware)
    context.run("source", _source)
    if not context.dry:
        context.run("the GPU", _gpu, context)
        context.run("nvidia-smi", _nvidia_smi, limit=20.0)


def _packages(context: Context) -> Mapping[str, Any]:
    missing = {name: what for name, what in OPTIONAL.items() if not _installed(name)}
    context.fact(missing=missing)
    return {
        **versions(),
        "machine": platform.platform(),
        "cuDNN": torch.backends.cudnn.version(),
        "missing": ", ".join(missing) or "none",
        "native": native_status(),
    }


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _output(*command: str) -> str:
    """Return what a tool prints, or why it prints nothing."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    return (done.stdout.strip() or done.stderr.strip())[:1000]


def _source() -> Mapping[str, Any]:
    safe = f"safe.directory={_ROOT}"
    return {"commit": _output("git", "-c", safe, "-C", str(_ROOT), "log", "-1", "--format=%H %cI")}


def _gpu(context: Context) -> Mapping[str, Any]:
    found = torch.cuda.get_device_properties(context.device)
    free, total = torch.cuda.mem_get_info()
    return {
        "name": found.name,
        "compute capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "shared memory of a program, KiB": machine_of(context.device).shared // 1024,
        "L2, MiB": found.L2_cache_size / 2**20,
        "memory, GiB": round(total / 2**30, 2),
        "free, GiB": round(free / 2**30, 2),
        "CUDA": torch.version.cuda,
    }


def _nvidia_smi() -> Mapping[str, Any]:
    """Read its settings; nothing is set."""
    printed = _output("nvidia-smi", f"--query-gpu={_QUERIED}", "--format=csv,noheader")
    names, values = _QUERIED.split(","), printed.partition("\n")[0].split(", ")
    if len(values) != len(names):
        return {"nvidia-smi": printed}
    return dict(zip(names, values, strict=True))


def target_of(device: torch.device) -> tuple[str, Machine]:
    """Return the target of kernels and the machine by which tiles are chosen; sm_90 for a CPU."""
    if device.type != "cuda":
        return "sm_90", MACHINES["sm_90"]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}", machine_of(device)


def shares(context: Context, seconds: float, name: str) -> list[Share]:
    """Split a compilation into parts, one for each core.

    Args:
        context: for the device, and the folder of the workers' files.
        seconds: after which workers begin nothing.
        name: of the files.
    """
    target, machine = target_of(context.device)
    parts = 2 if context.dry else min(os.cpu_count() or 2, 32)
    files, deadline = context.work / name, time.time() + seconds
    return [Share(target, machine, i, parts, deadline, Path(f"{files}-{i}")) for i in range(parts)]


_LAST = 12.0
"""Seconds left for a first iteration with what was compiled."""


def compile_kernels(context: Context) -> None:
    """Run the stage: fill the cache, then run from it."""
    limit = max(context.left - (0 if context.dry else _LAST), 5.0)
    context.run("kernels compiled", _compile, context, limit, limit=limit + 20)
    if not context.dry:
        context.run("a first iteration of mnist, bf16", _first, context)


def waves(*, dry: bool) -> Iterator[tuple[str, Sequence[Launch]]]:
    """List what is compiled, most valuable first; in a dry run one network's evaluation."""
    if dry:
        yield "evaluation, fp32", record_modules(experiment("mnist", dry=True), "fp32")[:4]
        return
    for name in FIVE:
        yield f"{name}, bf16", record_all(experiment(name, dry=False), "bf16")
    for rows in (512, 392, 100):  # as a run of MNIST is evaluated
        e = experiment("mnist", dry=False, batch=rows)
        yield f"mnist, evaluation of {rows}, fp32", record_modules(e, "fp32")
    others: list[tuple[ComputedIn, int | None]] = [
        ("bf16", 32), ("bf16", 512), ("bf16", 4096), ("fp16", None), ("fp32", None),
    ]  # fmt: skip
    for precision, batch in others:
        for name in FIVE:
            found = record(experiment(name, dry=False, batch=batch), precision)
            launches = [launch for part in found.values() for launch in part]
            yield f"{name}, batch {batch or 'as trained'}, {precision}", launches


def _compile(context: Context, seconds: float) -> Mapping[str, Any]:
    begun, target = time.monotonic(), target_of(context.device)[0]
    if target not in MACHINES:
        raise FailedError(f"no ahead-of-time compiler for {target}; stages compile as they go", {})
    work = shares(context, seconds - 8, "compiled")
    workers = start_workers(partial(waves, dry=context.dry), work)
    for worker in workers:
        worker.join(max(0.0, begun + seconds - time.monotonic()))
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    lines = read_lines(work)
    refused = [each for each in lines if "refused" in each]
    found = sorted((each for each in lines if "refused" not in each),
                   key=lambda each: -each["registers"])  # fmt: skip
    columns = ("wave", "kernel", "variant", "registers", "stack", "shared", "matrix", "f64")
    context.fact(kernels=[{name: each[name] for name in columns} for each in found[:400]])
    numbers = {
        "kernels": len(found),
        "workers": len(workers),
        "seconds": round(time.monotonic() - begun, 1),
        "with stack": sum(bool(each["stack"]) for each in found),
        "with fp64": sum(bool(each["f64"]) for each in found),
        "most registers": max((each["registers"] for each in found), default=0),
        "ended in time": all(code == 0 for code in codes),
    }
    if refused:
        context.fact(refused=refused[:100])
        first = f"{refused[0]['kernel']}: {refused[0]['refused']}"
        raise FailedError(f"{len(refused)} kernels are refused, first {first}", numbers)
    if not found:
        raise FailedError(f"no kernel was compiled; workers ended with {codes}", numbers)
    return numbers


def _cubins() -> int:
    folder = os.environ.get("TRITON_CACHE_DIR", "")
    return sum(1 for _ in Path(folder).rglob("*.cubin")) if folder else 0


def _first(context: Context) -> Mapping[str, Any]:
    """Count the kernels that the cache lacked after all, and time the loading of all."""
    before, begun = _cubins(), time.monotonic()
    as_trained(experiment("mnist", dry=context.dry), context.device, dry=context.dry).run(0, 1)
    context.synchronize()
    seconds = round(time.monotonic() - begun, 2)
    return {"seconds": seconds, "compiled after all": _cubins() - before, "in the cache": before}
