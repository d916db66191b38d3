"""What training takes of the GPU's memory, and one iteration's time, kernel by kernel."""

import gc
import gzip
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.baselines import BEST, EAGER
from bench.baselines.iteration import loop
from bench.gpu_report.context import Context, FailedError
from bench.gpu_report.workload import as_trained, experiment, iteration, names
from bench.training import images_for
from fastinfogan.engine.execution import EagerExecution, Execution
from fastinfogan.experiments import Experiment

TRACES = {"as trained": "trace_as_trained.json.gz", "call by call": "trace_call_by_call.json.gz"}
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LARGEST = 12 << 20
"""Bytes of a trace that is written."""


def memory(context: Context) -> None:
    """Run the stage: at the usual batch, then at a large one."""
    for batch in (4,) if context.dry else (128, 1024):
        for name in names(dry=context.dry):
            e = experiment(name, dry=context.dry, batch=batch)
            for side in ("captured", "call by call", BEST, EAGER):
                context.run(f"{name}, batch {batch}, {side}", _peak, context, e, side)


def _peak(context: Context, e: Experiment, side: str) -> Mapping[str, Any]:
    """Measure the bytes at the peak of three iterations, images and all."""
    cuda = context.device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    if side in (BEST, EAGER):
        images = images_for(e, max(2 * e.batch_size, 64 if context.dry else 4096), context.device)
        baseline = loop(side, e, images, e.batch_size, torch.bfloat16)
        for _ in range(3):
            baseline.run()
    elif side == "captured":
        as_trained(e, context.device, dry=context.dry).run(0, 3)
    else:
        EagerExecution(iteration(e, context.device, dry=context.dry)).run(0, 3)
    found: dict[str, Any] = {"experiment": e.name, "batch": e.batch_size, "side": side}
    if cuda:
        torch.cuda.synchronize()
        found["MiB allocated"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        found["MiB before"] = round(before / 2**20, 1)
        found["MiB reserved"] = round(torch.cuda.max_memory_reserved() / 2**20, 1)
    return found


def profile(context: Context) -> None:
    """Run the stage: as it is trained; MNIST also call by call, where the host's part shows."""
    for name in names(dry=context.dry):
        context.run(f"{name}, as trained", _profile, context, name, "as trained")
    context.run("mnist, call by call", _profile, context, "mnist", "call by call")


def _profile(context: Context, name: str, how: str) -> Mapping[str, Any]:
    e = experiment(name, dry=context.dry)
    execution = as_trained(e, context.device, dry=context.dry)
    if how == "call by call":
        execution = EagerExecution(execution.iteration)
    execution.run(0, 3)
    context.synchronize()
    file = context.work / f"profile-{name}.json"
    for step in (3, 4):  # the first one pays for the profiler's own start
        _trace(context, execution, step, file)
    if name == "mnist":
        packed = gzip.compress(file.read_bytes(), 6)
        if len(packed) <= _LARGEST:
            (context.out / TRACES[how]).write_bytes(packed)
    events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    category = _ON_GPU if context.device.type == "cuda" else ("cpu_op",)
    chosen = [each for each in events if each.get("cat") in category and "dur" in each]
    if not chosen:
        raise FailedError("the profiler saw no kernel", {"events": len(events)})
    times: defaultdict[str, list[float]] = defaultdict(list)
    for each in chosen:
        times[each["name"]].append(float(each["dur"]))
    busy = sum(map(sum, times.values()))
    table: list[dict[str, Any]] = [
        {"name": kernel[:120], "count": len(each), "us": round(sum(each), 2),
         "share": round(sum(each) / max(busy, 1e-9), 4)}
        for kernel, each in sorted(times.items(), key=lambda item: -sum(item[1]))
    ]  # fmt: skip
    context.fact(**{f"table of {name}, {how}": table[:40]})
    first = min(each["ts"] for each in chosen)
    return {
        "launches": len(chosen),
        "us busy": round(busy, 1),
        "us from first to last": round(max(e["ts"] + e["dur"] for e in chosen) - first, 1),
        "longest": table[0]["name"],
        "its share": table[0]["share"],
    }


def _trace(context: Context, execution: Execution, step: int, file: Path) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if context.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        execution.run(step, 1)
        context.synchronize()
    profiler.export_chrome_trace(str(file))
