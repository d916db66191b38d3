"""Launch parameters of the five experiments' passes, tuned: the table to be committed.

Each pass is timed as the rule cuts it, with cuts around that, and by ATen; one that gives other
numbers cannot win. Workers compile the cuts of the passes to come meanwhile.
"""

import gc
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from bench.gpu_report import ahead, chains, lines, tiles
from bench.gpu_report.stage import Context, first_line, main
from bench.gpu_report.tiles import Call
from bench.timing.clock import Clock, clock_for
from bench.timing.interleaved import Interleaved
from fastinfogan.engine.precision import ComputedIn
from fastinfogan_kernels.conv_block.launch_table import TABLE, Choice, read_table, using_table
from fastinfogan_kernels.runtime.machine import MACHINES

NAME = "launch_table.json"
_PRECISION: ComputedIn = "bf16"
_BETTER = 0.97
"""Of the rule's time, from which another choice is worth a line in the table."""
_RULE = "the rule"
_PATIENCE = 20.0
"""Seconds for which the first passes wait for their kernels to be compiled."""


def stage(context: Context) -> None:
    """The most expensive passes first; the table is written after each."""
    calls: list[Call] = []
    if context.dry:
        calls += _dry_calls(context)
    else:
        calls += tiles.all_calls(_PRECISION, context.device)
    present = read_table(TABLE)
    clock = clock_for(context.device)
    _write(context)
    gc.collect()
    gc.freeze()
    with _compiling(context, calls) as wait_for, using_table({}):
        for number, call in enumerate(calls):
            name = f"{call.of}: {call.key.partition('|')[2]}"

            def item(call: Call = call, number: int = number) -> Mapping[str, Any]:
                wait_for(number)
                return tune(call, present.get(call.key), clock, dry=context.dry)

            if context.run(name, item, limit=60.0) is not None:
                _write(context)


def _dry_calls(context: Context) -> list[Call]:
    """Two passes of a chain that is quickly interpreted."""
    case = next(each for each in chains.odd_chains(dry=True) if "batch" in each.name)
    with tiles.watching("a chain") as calls:
        chains.ours(case, context.device, torch.float32)
    return calls[1:3]


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
    with torch.no_grad():
        expected = {name: t.clone() for name, t in call.run().items()}
        choices: dict[str, Choice] = {}
        refused: dict[str, str] = {}
        for choice in tiles.choices_beside(call, tiles.rules_tile(call), present)[
            : 2 if dry else 99
        ]:
            told = _told(choice)
            try:
                wrong = tiles.alike(expected, tiles.with_choice(call, choice))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # too much shared memory, or more than the compiler can do
                wrong = first_line(error)
                if clock.device.type == "cuda":
                    torch.cuda.synchronize()  # raises if the device is lost: then so is the pass
            if wrong:
                refused[told] = wrong
            else:
                choices[told] = choice
        sides = {_RULE: call.run} | {
            told: (lambda choice=choice: tiles.with_choice(call, choice))  # type: ignore[misc]
            for told, choice in choices.items()
        }
        pair = Interleaved(sides, clock)
        pair()
        pair.clear()
        pair.go_on(3 if dry else 9, 0.4)
    times = pair.times
    pair.release()
    medians = {told: statistics.median(times.seconds[told]) for told in sides}
    best = min(medians, key=lambda told: medians[told])
    entry = None
    if best != _RULE and times.ratio(best, _RULE).high < _BETTER:
        entry = tiles.entry(choices[best])
    return {
        "experiment": call.of,
        "pass": call.which,
        "key": call.key,
        "us, the rule": round(1e6 * medians[_RULE], 2),
        "us, the best": round(1e6 * medians[best], 2),
        "of the rule": round(medians[best] / medians[_RULE], 3),
        "best": best if entry else _RULE,
        "TFLOP/s": round(call.flops / medians[best] / 1e12, 1),
        "entry": entry,
        "tried": len(sides),
        "refused": refused,
    }


def _told(choice: Choice) -> str:
    t = choice.tile
    if t is None:
        return "ATen" if choice.candidate == "aten" else _RULE + " of the table"
    return f"{t.m}x{t.n}x{t.k}, {t.warps} warps, {t.stages} stages, {t.splits} splits"


def _write(context: Context) -> None:
    """The table of all that this stage has tuned so far, whatever process did it.

    What the report's folder has of an earlier run stays, unless it was tuned anew.
    """
    found = lines.read(context.work / "tuning.jsonl").lines
    tuned = {line.numbers["key"]: line.numbers["entry"] for line in found if "key" in line.numbers}
    file = context.out / NAME
    present = json.loads(TABLE.read_text())
    with suppress(OSError, ValueError):
        present |= json.loads(file.read_text())
    table = tiles.merged(present, tuned)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(table, indent=1) + "\n")
    new.replace(file)


@contextmanager
def _compiling(context: Context, calls: Sequence[Call]) -> Iterator[Any]:
    """Have workers compile ahead; gives a wait for a pass's kernels."""
    target, machine = ahead.target_of(context.device)
    files, count = context.work / "candidates", min(os.cpu_count() or 2, 32)
    arguments = [*ahead.machine_arguments(target, machine), "--seconds", str(context.left)]
    useful = not context.dry and target in MACHINES
    workers = ahead.start(arguments, count if useful else 0, files, module="bench.gpu_report.tiles")
    begun = time.monotonic()

    def wait_for(number: int) -> None:
        # What has to be compiled after all only takes longer.
        patience = _PATIENCE if time.monotonic() - begun < 2 * _PATIENCE else 3.0
        deadline = time.monotonic() + min(patience, max(context.left - 5, 0))
        while time.monotonic() < deadline:
            running = [i for i, worker in enumerate(workers) if worker.poll() is None]
            if all(_reached(Path(f"{files}-{i}")) > number for i in running):
                return
            time.sleep(0.05)

    try:
        yield wait_for
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _reached(file: Path) -> int:
    """The number of the pass up to which a worker has compiled."""
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return -1


if __name__ == "__main__":
    main(stage, "tuning")
