"""Captured iterations: the eager one's bits, the same at every run, going on where they stopped.

In a dry run call by call stands in for the graph.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.accuracy import check_same_bits
from bench.gpu_report.context import Context, FailedError
from bench.gpu_report.workload import FIVE, config, experiment
from bench.gpu_report.workload import iteration as make_iteration
from fastinfogan.data.open import embedded_digits
from fastinfogan.engine import Iteration, RunDirectory, Schedule, Trainer
from fastinfogan.engine.config import ComputedIn
from fastinfogan.engine.execution import (
    CompiledExecution,
    CudaGraphExecution,
    EagerExecution,
    Execution,
)

_STEPS = 23
"""Two graphs of ten iterations, three of one."""
_COMPILING = 25.0
"""Seconds without which torch.compile is not begun."""
Mode = type[Execution]


def capture(context: Context) -> None:
    """Run the stage: MNIST in all precisions, the others in bf16."""
    replayed: Mode = EagerExecution if context.dry else CudaGraphExecution
    cases: list[tuple[str, ComputedIn]] = [("mnist", "bf16")]
    if not context.dry:
        cases += [(name, "bf16") for name in FIVE[1:]]
        cases += [("mnist", "fp16"), ("mnist", "fp32"), ("mnist", "tf32")]
    for i, (name, precision) in enumerate(cases):
        context.run(f"replay, {name}, {precision}", _replays, context, name, precision, replayed)
        if i == 0:
            context.run("a capture changes nothing", _unchanged, context, replayed)
            context.run("resume", _resume, context, limit=90.0)
            context.run("no host in the loop", _no_host, context, replayed)
    compiled = "compiled, mnist, bf16"
    if context.dry:
        context.skip(compiled, "in a dry run it takes too long; the engine's tests have it")
    context.run(compiled, _compiled, context, limit=150.0, least=_COMPILING)


def _made(context: Context, name: str = "mnist", precision: ComputedIn = "bf16") -> Iteration:
    e = experiment(name, dry=context.dry)
    return make_iteration(e, context.device, precision, dry=context.dry)


def _state(execution: Execution, parts: Sequence[int] = ()) -> dict[str, Tensor]:
    """Copy the state after some iterations, run in parts of so many."""
    done = 0
    for count in parts:
        execution.run(done, count)
        done += count
    state = execution.iteration.state()
    return {f"{k} {n}": t.detach().clone() for k, of in state.items() for n, t in of.items()}


def _replays(
    context: Context, name: str, precision: ComputedIn, replayed: Mode
) -> Mapping[str, Any]:
    """Replay against call by call, a second run, and other cuts into graphs: all bit for bit."""
    steps = 5 if context.dry else _STEPS
    begun = time.monotonic()
    execution = replayed(_made(context, name, precision))
    execution.prepare()
    context.synchronize()
    seconds = time.monotonic() - begun
    expected = _state(execution, [steps])
    runs: dict[str, tuple[Mode, Sequence[int]]] = {
        "call by call": (EagerExecution, [steps]),
        "replayed again": (replayed, [steps]),
        "replayed one by one": (replayed, [1] * steps),
    }
    numbers: dict[str, Any] = {}
    for what, (mode, parts) in runs.items():
        actual = _state(mode(_made(context, name, precision)), parts)
        numbers = check_same_bits(actual, expected, f"{what} and replayed")
    bad = [n for n, t in expected.items() if not t.isfinite().all()]
    if bad:
        raise FailedError(f"{bad[0]} is not finite after {steps} iterations", {})
    return {**numbers, "iterations": steps, "seconds to capture": round(seconds, 2)}


def _unchanged(context: Context, replayed: Mode) -> Mapping[str, Any]:
    execution = replayed(_made(context))
    before = _state(execution)
    execution.prepare()
    found = check_same_bits(_state(execution), before, "before and after the capture")
    counter = int(execution.iteration.counter.item())
    if counter:
        raise FailedError(f"the counter is left at {counter}", {})
    return found


def _resume(context: Context) -> Mapping[str, Any]:
    """Compare a run resumed from disk by another trainer with one that was not stopped."""
    digits, e = embedded_digits(), experiment("mnist", dry=context.dry)
    how = config(e, "bf16", data_fingerprint=digits.fingerprint, log_every=10)
    first, until = (3, 6) if context.dry else (35, 80)
    states = []
    for name, parts in (("straight", [until]), ("stopped", [first, until])):
        run = RunDirectory.create(context.work / f"resume-{name}", e, how)
        for i, part in enumerate(parts):
            trainer = Trainer(run, digits, context.device)
            if i:
                trainer.resume()
            trainer.train(part, Schedule(checkpoint_every=1000))
        states.append(_state(trainer.execution))
    straight, resumed = (
        {name: t for name, t in state.items() if not name.startswith("metrics")} for state in states
    )
    return {**check_same_bits(resumed, straight, "a run resumed and one not"), "stopped at": first}


@contextmanager
def _waits_are_errors(device: torch.device) -> Iterator[None]:
    """Make operations that let the host wait for the device raise."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def _no_host(context: Context, replayed: Mode) -> Mapping[str, Any]:
    """Check that the host never waits, called or replayed, and a replay allocates nothing."""
    numbers: dict[str, Any] = {}
    for what, mode in (("call by call", EagerExecution), ("replayed", replayed)):
        execution = mode(_made(context))
        execution.run(0, 3)
        context.synchronize()
        before = _allocations(context.device)
        with _waits_are_errors(context.device):
            execution.run(3, 10)
        context.synchronize()
        numbers[f"allocations, {what}"] = _allocations(context.device) - before
    if numbers["allocations, replayed"]:
        raise FailedError("a replay allocates", numbers)
    return numbers


def _allocations(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(torch.cuda.memory_stats().get("allocation.all.allocated", 0))


def _compiled(context: Context) -> Mapping[str, Any]:
    """Compare torch.compile's program of the whole iteration with the eager one."""
    begun = time.monotonic()
    actual = _state(CompiledExecution(_made(context)), [3])
    context.synchronize()
    seconds = round(time.monotonic() - begun, 1)
    expected = _state(EagerExecution(_made(context)), [3])
    return {**check_same_bits(actual, expected, "compiled and call by call"), "seconds": seconds}
