"""Iterations, blocks and operations against PyTorch, and how an iteration grows with the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.accuracy import MismatchError
from bench.baselines import BEST, COMPILED, CUDAGRAPHS, EAGER
from bench.cases import Planned
from bench.cases import blocks as block_cases
from bench.cases import iteration as iteration_cases
from bench.cases import ops as op_cases
from bench.gpu_report.context import Context, FailedError
from bench.gpu_report.workload import FIVE, as_trained, experiment, names
from bench.timing.clock import Run, clock_for
from bench.timing.interleaved import Interleaved, Times
from bench.timing.measure import measure
from bench.timing.rows import FASTINFOGAN, Row
from fastinfogan.engine.config import ComputedIn
from fastinfogan_kernels.runtime.launch import native_available

_BATCH, _DRY_BATCH = 128, 4
_COMPILING = 25.0
"""Seconds without which what torch.compile makes is not begun."""
_BATCHES = (32, 512, 4096, 128, 1024, 2048, 64, 256)
"""The ends and the middle first."""


def iteration(context: Context) -> None:
    """Run the stage: first against what needs no compiling, then the rest, as time allows."""
    context.run("roofline", _roofline, context)
    batch = _DRY_BATCH if context.dry else _BATCH

    def plan(name: str, precision: ComputedIn, baselines: Sequence[str] | None) -> Planned:
        device = context.device
        (found,) = iteration_cases.planned(device, [name], [precision], [batch], baselines)
        return found

    quick, budget = ([EAGER], 0.5) if context.dry else ([EAGER, BEST], 2.0)
    for name in names(dry=context.dry):
        _run(context, plan(name, "bf16", quick), budget=budget, limit=90.0)
    if context.dry:
        return
    for name in FIVE:
        _run(context, plan(name, "bf16", None), f", with {COMPILED} and {CUDAGRAPHS}", budget=3.0,
             limit=240.0, least=_COMPILING)  # fmt: skip
    others: tuple[ComputedIn, ...] = ("fp16", "fp32", "tf32")
    for precision in others:
        _run(context, plan("mnist", precision, [EAGER]), budget=1.0)


def blocks(context: Context) -> None:
    """Run the stage: blocks first, as they are most of an iteration; what is compiled last."""
    which, batch = names(dry=context.dry), 2 if context.dry else _BATCH
    plans = block_cases.planned(context.device, which, ["bf16"], batch)
    ops = op_cases.planned(context.device, which, ["bf16"], batch)
    if context.dry:
        plans, ops = plans[:1], ops[:3]
        if not native_available():
            context.skip("blocks", "on a CPU they need C++ for CPU tensors, which is not compiled")
            plans = []
    for plan in plans:
        _run(context, _uncompiled(plan), budget=0.3 if context.dry else 0.5, rounds=11)
    for plan in ops:
        _run(context, _uncompiled(plan), budget=0.1, rounds=11)
    for plan in () if context.dry else plans:
        _run(context, plan, f", with {COMPILED}", budget=1.0, limit=120.0, least=_COMPILING)


def _uncompiled(plan: Planned) -> Planned:
    """Drop the baseline that is compiled for each shape, which takes seconds each."""

    def make(device: torch.device) -> Any:
        case = plan.make(device)
        baselines = {name: run for name, run in case.baselines.items() if name != COMPILED}
        return replace(case, baselines=baselines)

    return replace(plan, make=make)


def _run(
    context: Context,
    plan: Planned,
    suffix: str = "",
    *,
    limit: float = 60.0,
    least: float = 0.0,
    **timing: Any,
) -> None:
    """Run a case as an item; what was found right without the suffix is not checked again."""
    name = plan.name if plan.group == "iteration" else f"{plan.group}, {plan.name}"
    check = not suffix or name not in context.ok
    context.run(
        name + suffix, lambda: _measured(context, plan, check, timing), limit=limit, least=least
    )


def _measured(
    context: Context, plan: Planned, check: bool, timing: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Check and time a case; one that is wrong is timed all the same, and reported as wrong.

    A GPU is had for minutes: what is wrong by a rounding must not cost its time as well. It does
    not get into the rows that are written.
    """
    case, wrong = plan.make(context.device), ""
    try:
        if check:
            case.check()
    except MismatchError as error:
        wrong = str(error)
    row = measure(replace(case, check=lambda: None), context.roofline, **timing)
    numbers = _summary(row)
    if wrong:
        raise FailedError(wrong, numbers)
    context.write_row(row)
    return numbers


def _summary(row: Row) -> dict[str, Any]:
    """Return microseconds, ratios and share of the roofline of a row."""
    found: dict[str, Any] = {"experiment": row.experiment, "batch": row.batch}
    found |= {f"us, {k}": round(1e6 * spread.median, 2) for k, spread in row.seconds.items()}
    found |= {f"of {k}": round(spread.median, 3) for k, spread in row.ratios.items()}
    found["share of the roofline"] = row.share and round(row.share, 3)
    found = {k: v for k, v in found.items() if v is not None}
    return {**found, "rounds": row.rounds, "how": row.how}


def _roofline(context: Context) -> Mapping[str, Any]:
    """Return the rates that no program exceeds by much."""
    precisions: list[ComputedIn] = ["bf16", "fp32", *([] if context.dry else ["fp16", "tf32"])]  # type: ignore[list-item]
    found = {f"{p}, TFLOP/s": round(context.roofline.gemm_rate(p) / 1e12, 2) for p in precisions}
    found["copy, GB/s"] = round(context.roofline.copy_rate() / 1e9, 1)
    context.fact(roofline=context.roofline.to_dict())
    return found


def scaling(context: Context) -> None:
    """Run the stage: all experiments at a batch, then at the next."""
    for batch in (2, 4) if context.dry else _BATCHES:
        for name in names(dry=context.dry):
            context.run(f"{name}, batch {batch}", _grown, context, name, batch)


def _grown(context: Context, name: str, batch: int) -> Mapping[str, Any]:
    if context.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    execution = as_trained(
        experiment(name, dry=context.dry, batch=batch), context.device, dry=context.dry
    )
    steps = iter(range(0, 1 << 30, execution.iterations_per_call))
    spread = timed(
        context,
        {FASTINFOGAN: lambda: execution.run(next(steps), execution.iterations_per_call)},
        7, 0.3, units=execution.iterations_per_call,
    ).spread(FASTINFOGAN)  # fmt: skip
    numbers: dict[str, Any] = {
        "experiment": name,
        "batch": batch,
        "us": round(1e6 * spread.median, 2),
        "quartiles": [round(1e6 * spread.low, 2), round(1e6 * spread.high, 2)],
        "images/s": round(batch / spread.median),
        "skipped": execution.iteration.read()["skipped"],
    }
    if context.device.type == "cuda":
        numbers["GiB at the peak"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return numbers


def timed(
    context: Context, runs: Mapping[str, Run], rounds: int, budget: float, *, units: int
) -> Times:
    """Time what comes run after run, as in training: interleaved, after a round of warming up."""
    pair = Interleaved(runs, clock_for(context.device), steady=True, units=units)
    pair()
    pair.clear()
    pair.time(rounds, budget)
    times = pair.times
    pair.release()
    return times
