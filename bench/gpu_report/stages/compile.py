"""All kernels compiled by all cores, and what the compiler made of them."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.gpu_report import ahead
from bench.gpu_report.stage import Context, FailedError, main
from bench.gpu_report.workload import experiment, make_iteration
from fastinfogan_kernels.runtime.machine import MACHINES

_MOST = 32
_LAST = 12.0
"""Seconds kept for the look at what the cache is worth."""


def stage(context: Context) -> None:
    """Fill the cache, then run from it."""
    limit = max(context.left - (0 if context.dry else _LAST), 5.0)
    context.run("kernels compiled", lambda: _compile(context, limit), limit=limit + 20)
    if not context.dry:
        context.run("a first iteration of mnist, bf16", lambda: _first(context))


def _compile(context: Context, seconds: float) -> Mapping[str, Any]:
    target, machine = ahead.target_of(context.device)
    if target not in MACHINES:
        raise FailedError(f"no ahead-of-time compiler for {target}; stages compile as they go", {})
    workers = 2 if context.dry else min(os.cpu_count() or 2, _MOST)
    files = context.work / "compiled"
    arguments = [*ahead.machine_arguments(target, machine), "--seconds", str(seconds - 8)]
    begun = time.monotonic()
    running = ahead.start(arguments + ["--dry-run"] * context.dry, workers, files)
    in_time = ahead.finished(running, seconds)
    every = ahead.found_by(files, workers)
    found = [each for each in every if "refused" not in each]
    refused = [each for each in every if "refused" in each]
    spilled = [each for each in found if each["stack"]]
    context.fact(
        kernels=[
            {name: each[name] for name in ("wave", "kernel", "variant", "registers", "stack",
                                           "shared", "matrix", "f64")}
            for each in sorted(found, key=lambda each: -each["registers"])
        ][:400]
    )  # fmt: skip
    numbers = {
        "kernels": len(found),
        "workers": workers,
        "seconds": round(time.monotonic() - begun, 1),
        "with stack": len(spilled),
        "with fp64": sum(bool(each["f64"]) for each in found),
        "most registers": max((each["registers"] for each in found), default=0),
        "ended in time": in_time,
    }
    if refused:
        context.fact(refused=refused[:100])
        told = f"{refused[0]['kernel']}: {refused[0]['refused']}"
        raise FailedError(f"{len(refused)} kernels are refused, first {told}", numbers)
    codes = [worker.returncode for worker in running]
    if not found:
        raise FailedError(f"no kernel was compiled; workers ended with {codes}", numbers)
    return numbers


def _cubins() -> int:
    folder = os.environ.get("TRITON_CACHE_DIR", "")
    return sum(1 for _ in Path(folder).rglob("*.cubin")) if folder else 0


def _first(context: Context) -> Mapping[str, Any]:
    """How many kernels were missing from the cache after all, and how long loading them takes."""
    before, begun = _cubins(), time.monotonic()
    iteration = make_iteration(experiment("mnist", dry=context.dry), "bf16", context.device)
    iteration.run(0)
    context.wait()
    return {
        "seconds": round(time.monotonic() - begun, 2),
        "compiled after all": _cubins() - before,
        "in the cache": before,
    }


if __name__ == "__main__":
    main(stage, "compile")
