"""One iteration, kernel by kernel: a table of each experiment's, and MNIST's as a trace."""

import gzip
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.cases.iteration import images_for, iteration_for
from bench.gpu_report.stage import Context, FailedError, main
from bench.gpu_report.workload import FIVE, experiment
from fastinfogan.engine.execution import EagerExecution, Execution, choose_execution

TRACES = {"as trained": "trace_as_trained.json.gz", "call by call": "trace_call_by_call.json.gz"}
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LARGEST = 12 << 20
"""Bytes of a trace that is kept."""


def stage(context: Context) -> None:
    """Replayed, as it is trained; MNIST also call by call, where the host's part shows."""
    for name in ("mnist",) if context.dry else FIVE:
        kind, _ = choose_execution("auto", context.device)
        context.run(
            f"{name}, as trained",
            lambda name=name, kind=kind: _profile(context, name, kind, "as trained"),  # type: ignore[misc]
        )
    context.run(
        "mnist, call by call", lambda: _profile(context, "mnist", EagerExecution, "call by call")
    )


def _profile(context: Context, name: str, kind: type[Execution], how: str) -> Mapping[str, Any]:
    e = experiment(name, dry=context.dry)
    images = images_for(e, 64 if context.dry else 4096, context.device)
    execution = kind(iteration_for(e, "bf16", e.batch_size, images))
    execution.run(0, 3)
    context.wait()
    file = context.work / f"profile-{name}.json"
    for step in (3, 4):  # the first one pays for the profiler's own start
        events = _traced(context, execution, step, file)
    if name == "mnist":
        _keep(file, context.out / TRACES[how])
    category = _ON_GPU if context.device.type == "cuda" else ("cpu_op",)
    chosen = [each for each in events if each.get("cat") in category and "dur" in each]
    if not chosen:
        raise FailedError("the profiler saw no kernel", {"events": len(events)})
    table = by_name(chosen)
    busy = sum(row["us"] for row in table)
    first = min(each["ts"] for each in chosen)
    span = max(each["ts"] + each["dur"] for each in chosen) - first
    context.fact(**{f"table of {name}, {how}": table[:40]})
    return {
        "launches": len(chosen),
        "us busy": round(busy, 1),
        "us from first to last": round(span, 1),
        "longest": table[0]["name"],
        "its share": table[0]["share"],
    }


def _traced(context: Context, execution: Execution, step: int, file: Path) -> list[dict[str, Any]]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if context.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        execution.run(step, 1)
        context.wait()
    profiler.export_chrome_trace(str(file))
    events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return events


def by_name(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time, count and share of each kernel, longest first."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for each in events:
        times[each["name"]].append(float(each["dur"]))
    total = sum(map(sum, times.values())) or 1.0
    rows = [
        {
            "name": name[:120],
            "count": len(each),
            "us": round(sum(each), 2),
            "share": round(sum(each) / total, 4),
        }
        for name, each in times.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["us"])))


def _keep(file: Path, to: Path) -> None:
    packed = gzip.compress(file.read_bytes(), 6)
    if len(packed) <= _LARGEST:
        to.write_bytes(packed)


if __name__ == "__main__":
    main(stage, "profile")
