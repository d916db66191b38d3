"""Launch parameters of the five experiments' passes, tuned: the table to be committed.

The passes are noted while an iteration runs, with their tensors. Each is timed as the rule tiles
it, with tiles around that, and by ATen; one that gives other numbers cannot win. Workers compile
the tiles of the passes to come meanwhile.
"""

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.cases.iteration import check_parity, images_for
from bench.compiled import META, compile_share, start_workers
from bench.counting.iteration import meta_iteration
from bench.gpu_report.benchmarks import timed
from bench.gpu_report.context import Context, first_line
from bench.gpu_report.machine import shares
from bench.gpu_report.workload import FIVE, as_trained, experiment, names
from bench.gpu_report.workload import iteration as make_iteration
from bench.timing.clock import Clock, clock_for
from bench.timing.interleaved import Interleaved
from fastinfogan.atomic_io import write_json
from fastinfogan.engine.precision import PRECISIONS
from fastinfogan.nn import Chain, ConvBlock
from fastinfogan_kernels.conv_block import candidates
from fastinfogan_kernels.conv_block.bn_stats import Forward
from fastinfogan_kernels.conv_block.geometry import ConvGeometry
from fastinfogan_kernels.conv_block.implicit_gemm import NOTHING
from fastinfogan_kernels.conv_block.launch_table import (
    TABLE,
    Choice,
    GemmTile,
    Pass,
    key,
    read_table,
    using_table,
)  # fmt: skip
from fastinfogan_kernels.runtime.launch import Launch, recording
from fastinfogan_kernels.runtime.machine import MACHINES, power_of_two

if TYPE_CHECKING:
    from fastinfogan.engine.execution import Execution

NAME = "launch_table.json"
_PRODUCTS = ("implicit_gemm_kernel", "weight_gradient_kernel")
_MOST = 9
"""Tiles that are tried beside the rule's."""
_BETTER = 0.97
"""Of the rule's time, from which another choice is worth a line in the table."""
_RULE = "the rule"
_WAIT = 20.0
"""Seconds for which the first passes wait for their kernels to be compiled."""
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """A pass of a layer, as an iteration ran it.

    Attributes:
        experiment: its name.
        which: the pass.
        key: the launch table's.
        flat: a fully connected layer.
        flops: of its product.
        columns: of the result, at the most.
        run: runs it once more; its results by name.
    """

    experiment: str
    which: Pass
    key: str
    flat: bool
    flops: int
    columns: int
    run: Callable[[], Results]


@contextmanager
def watching(name: str) -> Iterator[dict[str, Call]]:
    """Note the passes of convolutions that are run inside, by key."""
    multiply, weight_gradient = candidates.multiply, candidates.weight_gradient
    calls: dict[str, Call] = {}

    def note(which: Pass, x: Tensor, w: Tensor, gather: ConvGeometry, run: Any) -> None:
        flops = 2 * x.shape[0] * gather.window.rows * gather.window.columns * w.numel()
        of, columns = key(which, x, w, gather), max(w.shape[:2])
        calls.setdefault(of, Call(name, which, of, w.dim() == 2, flops, columns, run))

    def watched_multiply(
        operand: Any, weight: Tensor, gather: ConvGeometry, groups: int, epilogue: Any = NOTHING,
        *, backward: bool = False,
    ) -> Any:  # fmt: skip
        def run() -> Results:
            y, tiles = multiply(operand, weight, gather, groups, epilogue, backward=backward)
            stats = epilogue.into if tiles is not None else None
            if stats is None:
                return {"y": y}
            if isinstance(stats, Forward):
                return {"y": y, "params": stats.params, "rstd": stats.rstd}
            return {"y": y, **{f"gradient {i}": t for i, t in enumerate(stats.results)}}

        note("data_gradient" if backward else "forward", operand.x, weight, gather, run)
        return multiply(operand, weight, gather, groups, epilogue, backward=backward)

    def watched_gradient(
        operand: Any, gradient: Any, weight: Tensor, gather: ConvGeometry, groups: int
    ) -> Tensor:
        def run() -> Results:
            return {"dw": weight_gradient(operand, gradient, weight, gather, groups)}

        note("weight_gradient", operand.x, weight, gather, run)
        return weight_gradient(operand, gradient, weight, gather, groups)

    module: Any = candidates
    module.multiply, module.weight_gradient = watched_multiply, watched_gradient
    try:
        yield calls
    finally:
        module.multiply, module.weight_gradient = multiply, weight_gradient


def passes_of(name: str, device: torch.device) -> list[Call]:
    """The passes of an experiment's iteration, most expensive first."""
    e, meta = experiment(name, dry=False), device.type == "meta"
    with recording() if meta else nullcontext(), PRECISIONS["bf16"].arithmetic(), torch.no_grad():
        iteration = meta_iteration(e, "bf16") if meta else make_iteration(e, device, dry=False)
        with watching(name) as calls:
            iteration.program()  # without a workspace, so that no tensor is written over
    return sorted(calls.values(), key=lambda call: -call.flops)


def all_passes(device: torch.device) -> list[Call]:
    """Of the five, in turns, so that each gets its most expensive passes tuned."""
    rows = zip_longest(*(passes_of(name, device) for name in FIVE))
    found: dict[str, Call] = {}
    for call in (call for row in rows for call in row if call is not None):
        found.setdefault(call.key.partition("|")[2], call)  # one pass of two experiments is one
    return list(found.values())


def small_passes() -> list[Call]:
    """Of two small blocks, which Triton's interpreter runs in a second."""
    chain = Chain(ConvBlock(3, 7, 4, 2), ConvBlock(7, 18, 4, 2), impl="triton")
    with watching("two blocks") as calls:
        chain(torch.randn(2, 3, 8, 8)).sum().backward()
    return list(calls.values())[:2]


def rules_tile(call: Call) -> GemmTile | None:
    """How the rule, or the table in force, tiles a pass; None if ATen computes it."""
    with recording(run=False) as launches:
        call.run()
    for launch in launches:
        if launch.name in _PRODUCTS:
            p = launch.parameters
            return GemmTile(
                p["BLOCK_M"], p["BLOCK_N"], p["BLOCK_K"], p["num_warps"], p["num_stages"],
                int(launch.grid[2]), p.get("maxnreg"),
            )  # fmt: skip
    return None


def choices_beside(call: Call, tile: GemmTile | None, present: Choice | None) -> list[Choice]:
    """What might be better than the rule, the likeliest first.

    Args:
        call: the pass.
        tile: the rule's.
        present: what the present table says of it.
    """
    found = [present] if present is not None and present != Choice() else []
    if not call.flat:
        found.append(Choice("aten"))
    if tile is not None:
        tiles = [each for each in _around(tile, call) if _sensible(each, call) and each != tile]
        found += [Choice("gemm", each) for each in dict.fromkeys(tiles)][:_MOST]
    return found


def _around(t: GemmTile, call: Call) -> Iterator[GemmTile]:
    yield replace(t, m=2 * t.m, warps=8)
    yield replace(t, m=t.m // 2, warps=4)
    yield replace(t, n=t.n // 2)
    yield replace(t, n=2 * t.n, warps=8)
    if call.flat or call.which == "weight_gradient":
        yield replace(t, splits=2 * t.splits)
        yield replace(t, splits=max(t.splits // 2, 1))
    yield replace(t, stages=t.stages + 1)
    yield replace(t, k=t.k // 2)
    yield replace(t, k=2 * t.k, stages=max(t.stages - 1, 2))
    yield replace(t, warps=4 if t.warps == 8 else 8)
    yield replace(t, stages=max(t.stages - 1, 1))


def _sensible(t: GemmTile, call: Call) -> bool:
    return (
        16 <= t.m <= 256
        and 16 <= t.n <= min(256, power_of_two(call.columns, 16, 256))
        and 16 <= t.k <= 128
        and 32 * t.warps <= t.m * t.n <= 256 * 128
        and 1 <= t.stages <= 5
        and 1 <= t.splits <= 64
    )


def with_choice(call: Call, choice: Choice) -> Results:
    """Run a pass as a choice says."""
    with using_table({"*": choice}):
        return call.run()


def difference(actual: Results, expected: Results) -> str:
    """Where two ways of computing a pass differ by more than roundings, or ""."""
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
        pair.go_on(3 if dry else 9, 0.4)
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
        "entry": entry(choices[best]) if better else None,
        "tried": len(runs),
        "refused": refused,
    }


def _words(choice: Choice) -> str:
    t = choice.tile
    if t is None:
        return "ATen" if choice.candidate == "aten" else _RULE + " of the table"
    return f"{t.m}x{t.n}x{t.k}, {t.warps} warps, {t.stages} stages, {t.splits} splits"


def entry(choice: Choice) -> dict[str, Any]:
    """A choice as the launch table's JSON has it."""
    tile = None if choice.tile is None else asdict(choice.tile)
    return {"candidate": choice.candidate, **({"tile": tile} if tile else {})}


def merged(
    present: Mapping[str, Any], tuned: Mapping[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """The table to be committed, sorted by key; what was not tuned stays.

    Args:
        present: the installed one's entries, as JSON.
        tuned: by key the new entry, or None where the rule is as good as any.
    """
    found = {name: value for name, value in present.items() if name not in tuned}
    found |= {name: value for name, value in tuned.items() if value is not None}
    return dict(sorted(found.items()))


def tuning(context: Context) -> None:
    """Run the stage: the most expensive passes first; the table is written after each."""
    calls = small_passes() if context.dry else all_passes(context.device)
    present, clock = read_table(TABLE), clock_for(context.device)
    _write(context)
    work = shares(context, context.left, "tiles")
    useful = not context.dry and work[0].target in MACHINES
    workers = start_workers(compile_share, (tile_waves,), work) if useful else []
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
    """What workers compile while others are timed: each pass by all its tiles, in that order."""
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
        if not context.dry:
            context.run(f"{name}, right by the table", _right, context, name, table)
        context.run(f"{name}, an iteration", _timed, context, name, table)


def _right(context: Context, name: str, table: dict[str, Choice]) -> Mapping[str, Any]:
    e = experiment(name, dry=context.dry)
    images = images_for(e, 2 * e.batch_size, context.device)
    with using_table(table):
        check_parity(e, "bf16", e.batch_size, images)
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
