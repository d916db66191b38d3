"""How an iteration's time and memory grow with the batch, ours alone."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from bench.cases.iteration import images_for, iteration_for
from bench.gpu_report import lines
from bench.gpu_report.stage import Context, main
from bench.gpu_report.workload import FIVE, experiment, fresh_memory
from bench.timing.clock import clock_for
from bench.timing.interleaved import Interleaved
from fastinfogan.engine.execution import choose_execution

_BATCHES = (32, 512, 4096, 128, 1024, 2048, 64, 256)
"""The ends and the middle first."""
_IMAGES = 8192
_FULL = 512


def stage(context: Context) -> None:
    """All experiments at a batch, then at the next."""
    for batch in (2, 4) if context.dry else _BATCHES:
        for name in ("mnist",) if context.dry else FIVE:
            context.run(
                f"{name}, batch {batch}",
                lambda name=name, batch=batch: _time(context, name, batch),  # type: ignore[misc]
            )
    _fit(context)


def _fit(context: Context) -> None:
    """By what power of the batch time grows, where the GPU is full: least squares from 512 on."""
    found = {}
    rows = [line.numbers for line in lines.read(context.work / "scaling.jsonl").lines]
    for name in FIVE:
        points = [
            (math.log(n["batch"]), math.log(n["us"]))
            for n in rows
            if n.get("experiment") == name and (n["batch"] >= _FULL or context.dry)
        ]
        if len(points) > 1:
            found[name] = round(statistics.linear_regression(*zip(*points, strict=True)).slope, 3)
    context.fact(exponents=found)


def _time(context: Context, name: str, batch: int) -> Mapping[str, Any]:
    e = experiment(name, dry=context.dry, batch=batch)
    with fresh_memory(context.device):
        images = images_for(e, 64 if context.dry else _IMAGES, context.device)
        kind, _ = choose_execution("auto", context.device)
        execution = kind(iteration_for(e, "bf16", batch, images))
        steps = iter(range(0, 1 << 30, execution.iterations_per_call))
        pair = Interleaved(
            {"ours": lambda: execution.run(next(steps), execution.iterations_per_call)},
            clock_for(context.device),
            steady=True,
            units=execution.iterations_per_call,
        )
        pair()
        pair.clear()
        pair.go_on(7, 0.3)
    spread = pair.times.spread("ours")
    numbers: dict[str, Any] = {
        "experiment": name,
        "batch": batch,
        "us": round(1e6 * spread.median, 2),
        "quartiles": [round(1e6 * spread.low, 2), round(1e6 * spread.high, 2)],
        "images/s": round(batch / spread.median),
    }
    if context.device.type == "cuda":
        numbers["GiB at the peak"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    if execution.iteration.tally.tolist()[1]:
        numbers["skipped"] = execution.iteration.tally.tolist()[1]
    pair.release()
    return numbers


if __name__ == "__main__":
    main(stage, "scaling")
