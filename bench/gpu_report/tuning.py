"""Launch parameters of the five experiments' passes, tuned: the table to be committed.

Each pass is timed as the rule tiles it, with tiles around that, and by ATen; one that gives other
numbers cannot win. Workers compile the tiles of the passes to come meanwhile.
"""

import gc
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench.cases import Setting
from bench.cases.iteration import check_parity
from bench.compiled import META, start_workers
from bench.gpu_report.benchmarks import timed
from bench.gpu_report.context import Context
from bench.gpu_report.journal import first_line
from bench.gpu_report.machine import shares
from bench.gpu_report.passes import (
    Call,
    Results,
    all_passes,
    choices_beside,
    rules_tile,
    small_passes,
    with_choice,
)
from bench.gpu_report.workload import as_trained, experiment, names
from bench.timing.clock import Clock, clock_for
from bench.timing.interleaved import Interleaved
from bench.training import images_for
from fastinfogan.files import write_json
from fastinfogan_kernels.conv_block.launch_table import TABLE, Choice, read_table, using_table
from fastinfogan_kernels.runtime.launch import Launch, recording
from fastinfogan_kernels.runtime.machine import MACHINES

if TYPE_CHECKING:
    from fastinfogan.engine.execution import Execution

NAME = "launch_table.json"
_BETTER = 0.97
"""Of the rule's time, from which another choice is worth a line in the table."""
_RULE = "the rule"
_WAIT = 20.0
"""Seconds for which the first passes wait for their kernels to be compiled."""


def difference(actual: Results, expected: Results) -> str:
    """Describe where two ways of computing a pass differ by more than roundings, or return ""."""
    for name, one in expected.items():
        other = actual.get(name)
        if other is None:
            return f"{name} is missing"
        a, b = one.double(), other.double()
        if a.shape != b.shape or not torch.isfinite(b).all():
            return f"{name} is not finite, or of another shape"
        scale = a.square().mean().sqrt().clamp(min=1e-30)
        off = ((a - b).square().mean().sqrt() / scale).item()
        # Sums in another order, of operands that were rounded alike.
        if not off <= max(2 * torch.finfo(one.dtype).eps, 2e-3):
            return f"{name} is off by {off:.1e}"
    return ""


def tune(call: Call, present: Choice | None, clock: Clock, *, dry: bool) -> Mapping[str, Any]:
    """Time a pass by all that might compute it.

    Args:
        call: the pass.
        present: what the installed table says of it.
        clock: of the device.
        dry: two choices are enough.

    Returns:
        The key, the rule's time and the best one, what that is, and the table's entry or None.
    """
    choices: dict[str, Choice] = {}
    refused: dict[str, str] = {}
    with torch.no_grad():
        expected = {name: t.clone() for name, t in call.run().items()}
        every = choices_beside(call, rules_tile(call), present)
        for choice in every[:2] if dry else every:
            try:
                wrong = difference(with_choice(call, choice), expected)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # too much shared memory, or more than the compiler can do
                wrong = first_line(error)
                if clock.device.type == "cuda":
                    torch.cuda.synchronize()  # raises if the device is lost: then so is the pass
            if wrong:
                refused[_words(choice)] = wrong
            else:
                choices[_words(choice)] = choice
        runs = {_RULE: call.run} | {
            words: (lambda choice=choice: with_choice(call, choice))
            for words, choice in choices.items()
        }
        pair = Interleaved(runs, clock)
        pair()
        pair.clear()
        pair.time(3 if dry else 9, 0.4)
    times = pair.times
    pair.release()
    medians = {words: statistics.median(times.seconds[words]) for words in runs}
    best = min(medians, key=lambda words: medians[words])
    better = best != _RULE and times.ratio(best, _RULE).high < _BETTER
    return {
        "experiment": call.experiment,
        "pass": call.which,
        "key": call.key,
        "us, the rule": round(1e6 * medians[_RULE], 2),
        "us, the best": round(1e6 * medians[best], 2),
        "of the rule": round(medians[best] / medians[_RULE], 3),
        "best": best if better else _RULE,
        "TFLOP/s": round(call.flops / medians[best] / 1e12, 1),
        "entry": asdict(choices[best]) if better else None,
        "tried": len(runs),
        "refused": refused,
    }


def _words(choice: Choice) -> str:
    t = choice.tile
    if t is None:
        return "ATen" if choice.candidate == "aten" else _RULE + " of the table"
    return f"{t.m}x{t.n}x{t.k}, {t.warps} warps, {t.stages} stages, {t.splits} splits"


def merged(present: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table to be committed, as JSON, sorted by key.

    Args:
        present: the entries of the installed one; what was not tuned stays.
        tuned: by key the new entry, or None where the rule is as good as any.
    """
    found = {**present, **tuned}
    return {name: found[name] for name in sorted(found) if found[name] is not None}


def tuning(context: Context) -> None:
    """Run the stage: the most expensive passes first; the table is written after each."""
    calls = small_passes() if context.dry else all_passes(context.device)
    present, clock = read_table(TABLE), clock_for(context.device)
    _write(context)
    work = shares(context, context.left, "tiles")
    useful = not context.dry and work[0].target in MACHINES
    workers = start_workers(tile_waves, work) if useful else []
    begun = time.monotonic()  # what has to be compiled after all only takes longer
    for worker in workers:
        worker.join(max(0.0, begun + min(_WAIT, context.left / 3) - time.monotonic()))
    gc.collect()
    gc.freeze()
    with using_table({}):
        for call in calls:
            name = f"{call.experiment}: {call.key.partition('|')[2]}"
            item = partial(tune, call, present.get(call.key), clock, dry=context.dry)
            if context.run(name, item) is not None:
                _write(context)


def tile_waves() -> Iterator[tuple[str, list[Launch]]]:
    """List what workers compile while others are timed: each pass by all its tiles, in order."""
    for call in all_passes(META):
        launches: list[Launch] = []
        for choice in choices_beside(call, rules_tile(call), None):
            with suppress(Exception), recording() as found, torch.no_grad():
                with_choice(call, choice)  # one that cannot be launched is none
                launches += found
        yield call.key, launches


def _write(context: Context) -> None:
    """Write the table: the installed one, an earlier run's, and what this stage has tuned."""
    found = [item.numbers for item in context.journal.read().items]
    present = json.loads(TABLE.read_text())
    with suppress(OSError, ValueError):
        present |= json.loads((context.out / NAME).read_text())
    tuned = {numbers["key"]: numbers["entry"] for numbers in found if "key" in numbers}
    write_json(context.out / NAME, merged(present, tuned))


def tuned(context: Context) -> None:
    """Run the stage: by experiment, an iteration with the table is right, then timed."""
    file = context.out / NAME
    table = read_table(file if file.exists() else TABLE)
    context.fact(entries=len(table))
    if not table:
        context.skip("all", "the table is empty: there is nothing to compare")
        return
    for name in names(dry=context.dry):
        context.run(f"{name}, right by the table", _right, context, name, table)
        context.run(f"{name}, an iteration", _timed, context, name, table)


def _right(context: Context, name: str, table: dict[str, Choice]) -> Mapping[str, Any]:
    e = experiment(name, dry=False, batch=4 if context.dry else None)
    images = images_for(e, 2 * e.batch_size, context.device)
    with using_table(table):
        check_parity(Setting("iteration", name, e, "bf16", e.batch_size, context.device), images)
    return {"experiment": name}


def _timed(context: Context, name: str, table: dict[str, Choice]) -> Mapping[str, Any]:
    tables = {"tuned": table, _RULE: {}}
    executions: dict[str, Execution] = {}
    for side, of in tables.items():
        with using_table(of):
            executions[side] = as_trained(
                experiment(name, dry=context.dry), context.device, dry=context.dry
            )
            executions[side].run(0, executions[side].iterations_per_call)
    at_once = executions[_RULE].iterations_per_call
    steps = {side: iter(range(at_once, 1 << 30, at_once)) for side in tables}

    def run(side: str) -> None:
        with using_table(tables[side]):  # call by call it is looked up each time
            executions[side].run(next(steps[side]), at_once)

    runs = {side: (lambda side=side: run(side)) for side in tables}
    times = timed(context, runs, 15, 1.0, units=at_once)
    ratio = times.ratio("tuned", _RULE)
    return {
        "experiment": name,
        **{f"us, {side}": round(1e6 * times.spread(side).median, 2) for side in tables},
        "of the rule": round(ratio.median, 3),
        "quartiles": [round(ratio.low, 3), round(ratio.high, 3)],
    }
