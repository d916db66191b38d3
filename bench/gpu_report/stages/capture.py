"""Captured iterations: the eager one's bits, the same at every run, going on where they stopped.

In a dry run call by call stands in for the graph.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu_report.judge import same_bits
from bench.gpu_report.stage import Context, FailedError, main
from bench.gpu_report.workload import FIVE, digits, experiment, make_iteration, train_config
from fastinfogan.engine import Iteration, RunDirectory, Schedule, Trainer
from fastinfogan.engine.execution import (
    CompiledExecution,
    CudaGraphExecution,
    EagerExecution,
    Execution,
)
from fastinfogan.engine.precision import ComputedIn
from fastinfogan_kernels.runtime.backend import native_available

_STEPS = 23
"""Two graphs of ten iterations, three of one."""


def stage(context: Context) -> None:
    """MNIST in all precisions, then the others in bf16."""
    replayed: type[Execution] = EagerExecution if context.dry else CudaGraphExecution
    of: list[tuple[str, ComputedIn]] = [("mnist", "bf16")]
    if not context.dry:
        of += [(name, "bf16") for name in FIVE[1:]]
        of += [("mnist", "fp16"), ("mnist", "fp32"), ("mnist", "tf32")]
    for i, (name, precision) in enumerate(of):
        label = f"{name}, {precision}"
        context.run(
            f"replay, {label}",
            lambda n=name, p=precision: _replays(context, n, p, replayed),  # type: ignore[misc]
        )
        if i == 0:
            context.run("nothing is left by a capture", lambda: _untouched(context, replayed))
            context.run("resume", lambda: _resume(context), limit=90.0)
            context.run("no host in the loop", lambda: _no_host(context, replayed))
    if context.dry and (context.left < 60 or not native_available()):
        why = "in a dry run it needs a minute, and C++ for CPU tensors"
        context.note("compiled, mnist, bf16", why)
    elif context.left < 25:
        context.note("compiled, mnist, bf16", "torch.compile takes longer than is left")
    context.run("compiled, mnist, bf16", lambda: _compiled(context), limit=150.0)


def _made(context: Context, name: str, precision: ComputedIn) -> Iteration:
    return make_iteration(experiment(name, dry=context.dry), precision, context.device)


def left_by(iteration: Iteration, execution: Execution, parts: Sequence[int]) -> dict[str, Tensor]:
    """The state after some iterations, in parts of so many."""
    done = 0
    for count in parts:
        execution.run(done, count)
        done += count
    state = iteration.state()
    return {f"{k} {n}": t.detach().clone() for k, of in state.items() for n, t in of.items()}


def _replays(
    context: Context, name: str, precision: ComputedIn, replayed: type[Execution]
) -> Mapping[str, Any]:
    """Replay against call by call, a second run, and other cuts into graphs: all bit for bit."""
    steps = 5 if context.dry else _STEPS
    sides: dict[str, tuple[type[Execution], Sequence[int]]] = {
        "replayed": (replayed, [steps]),
        "call by call": (EagerExecution, [steps]),
        "replayed again": (replayed, [steps]),
        "replayed one by one": (replayed, [1] * steps),
    }
    found, seconds = {}, 0.0
    for side, (kind, parts) in sides.items():
        iteration = _made(context, name, precision)
        execution = kind(iteration)
        begun = time.monotonic()
        execution.prepare()
        context.wait()
        if side == "replayed":
            seconds = time.monotonic() - begun
        found[side] = left_by(iteration, execution, parts)
    told = {}
    for side in list(sides)[1:]:
        told = same_bits(found["replayed"], found[side], f"replayed and {side}")
    bad = [n for n, t in found["replayed"].items() if not t.isfinite().all()]
    if bad:
        raise FailedError(f"{bad[0]} is not finite after {steps} iterations", {})
    return {**told, "iterations": steps, "seconds to capture": round(seconds, 2)}


def _untouched(context: Context, replayed: type[Execution]) -> Mapping[str, Any]:
    iteration = _made(context, "mnist", "bf16")
    before = left_by(iteration, EagerExecution(iteration), [])
    execution = replayed(iteration)
    execution.prepare()
    found = same_bits(before, left_by(iteration, execution, []), "before and after the capture")
    if iteration.counter.item() != 0:
        raise FailedError(f"the counter is left at {iteration.counter.item()}", {})
    return found


def _resume(context: Context) -> Mapping[str, Any]:
    """A run stopped and resumed by another trainer, from disk, and one that was not."""
    source, what = digits()
    e = experiment("mnist", dry=context.dry)
    settings = replace(
        train_config(e, "bf16", source.fingerprint), augmentation="affine", log_every=10
    )
    first, until = (3, 6) if context.dry else (35, 80)
    states = []
    for name, parts in (("straight", [until]), ("stopped", [first, until])):
        run = RunDirectory.create(context.work / f"resume-{name}", e, settings)
        for i, part in enumerate(parts):
            trainer = Trainer(run, source, context.device)
            if i:
                trainer.resume()
            trainer.train(part, Schedule(checkpoint_every=1000))
        states.append(left_by(trainer.iteration, trainer.execution, []))
    kept = [{n: t for n, t in s.items() if not n.startswith("metrics")} for s in states]
    return {**same_bits(*kept, "a run and one resumed"), "images": what, "stopped at": first}


@contextmanager
def _waits_are_errors(context: Context) -> Any:  # noqa: ANN401
    """Have whatever would make the host wait for the device raise."""
    if context.device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _no_host(context: Context, replayed: type[Execution]) -> Mapping[str, Any]:
    """Neither call by call nor replayed does the host wait, or the device allocate."""
    numbers: dict[str, Any] = {}
    for side, kind in (("call by call", EagerExecution), ("replayed", replayed)):
        iteration = _made(context, "mnist", "bf16")
        execution = kind(iteration)
        execution.run(0, 3)
        context.wait()
        before = _allocations(context)
        with _waits_are_errors(context):
            execution.run(3, 10)
        context.wait()
        numbers[f"allocations, {side}"] = _allocations(context) - before
    if numbers["allocations, replayed"]:
        raise FailedError("a replay allocates", numbers)
    return numbers


def _allocations(context: Context) -> int:
    if context.device.type != "cuda":
        return 0
    return int(torch.cuda.memory_stats().get("allocation.all.allocated", 0))


def _compiled(context: Context) -> Mapping[str, Any]:
    """torch.compile's program of the whole iteration, beside the eager one."""
    steps, begun = 3, time.monotonic()
    states = []
    for kind in (CompiledExecution, EagerExecution):
        iteration = _made(context, "mnist", "bf16")
        states.append(left_by(iteration, kind(iteration), [steps]))
        context.wait()
        if kind is CompiledExecution:
            seconds = time.monotonic() - begun
    return {**same_bits(*states, "compiled and call by call"), "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main(stage, "capture")
