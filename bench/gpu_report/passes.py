"""The passes of an iteration, one by one, and by what each might be computed instead.

The passes are noted while an iteration runs, with their tensors, so that each can be run again with
other tiles or by ATen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from bench.counting.iteration import meta_iteration
from bench.gpu_report.workload import FIVE, experiment
from bench.gpu_report.workload import iteration as make_iteration
from fastinfogan.engine.config import PRECISIONS
from fastinfogan.nn import Chain, ConvBlock
from fastinfogan_kernels.conv_block import ops
from fastinfogan_kernels.conv_block.bn_stats import BatchNormForward
from fastinfogan_kernels.conv_block.launch_table import (
    Choice,
    GemmTile,
    Pass,
    table_key,
    using_table,
)
from fastinfogan_kernels.runtime.launch import recording
from fastinfogan_kernels.runtime.machine import power_of_two

_PRODUCTS = ("implicit_gemm_kernel", "weight_gradient_kernel")
_MOST = 9
"""Tiles that are tried beside the rule's."""
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
    """Record the passes of layers that are run inside, by key."""
    calls: dict[str, Call] = {}

    def watched(function: Any, weight_at: int) -> Any:
        def run_and_note(*args: Any, **kwargs: Any) -> Any:
            x, weight, geometry = args[0].x, args[weight_at], args[weight_at + 1]
            which: Pass = "data_gradient" if kwargs.get("backward") else "forward"
            which = "weight_gradient" if function is weight_gradient else which
            window = geometry.window
            flops = 2 * x.shape[0] * window.rows * window.columns * weight.numel()
            call = Call(
                name, which, table_key(which, x, weight, geometry), weight.dim() == 2, flops,
                max(weight.shape[:2]), lambda: _results(function(*args, **kwargs), args[-1]),
            )  # fmt: skip
            calls.setdefault(call.key, call)
            return function(*args, **kwargs)

        return run_and_note

    module: Any = ops
    convolve, weight_gradient = module.convolve, module.convolve_weight_gradient
    module.convolve = watched(convolve, 1)
    module.convolve_weight_gradient = watched(weight_gradient, 2)
    try:
        yield calls
    finally:
        module.convolve, module.convolve_weight_gradient = convolve, weight_gradient


def _results(found: Any, epilogue: Any) -> Results:
    """Name what a pass returns, and what its epilogue leaves beside that."""
    if isinstance(found, Tensor):
        return {"dw": found}
    y, tiles = found
    stats = getattr(epilogue, "stats_out", None) if tiles is not None else None
    if stats is None:
        return {"y": y}
    if isinstance(stats, BatchNormForward):
        return {"y": y, "params": stats.params, "rstd": stats.rstd}
    return {"y": y, **{f"gradient {i}": t for i, t in enumerate(stats.results)}}


def passes_of(name: str, device: torch.device) -> list[Call]:
    """Return the passes of an experiment's iteration, most expensive first."""
    e, meta = experiment(name, dry=False), device.type == "meta"
    with recording() if meta else nullcontext(), PRECISIONS["bf16"].arithmetic(), torch.no_grad():
        iteration = meta_iteration(e, "bf16") if meta else make_iteration(e, device, dry=False)
        with watching(name) as calls:
            iteration.program()  # without a workspace, so that no tensor is written over
    return sorted(calls.values(), key=lambda call: -call.flops)


def all_passes(device: torch.device) -> list[Call]:
    """Interleave the passes of five experiments, so that the most expensive of each are tuned."""
    rows = zip_longest(*(passes_of(name, device) for name in FIVE))
    found: dict[str, Call] = {}
    for call in (call for row in rows for call in row if call is not None):
        found.setdefault(call.key.partition("|")[2], call)  # one pass of two experiments is one
    return list(found.values())


def small_passes() -> list[Call]:
    """Return passes of two small blocks, which Triton's interpreter runs in a second."""
    chain = Chain(ConvBlock(3, 7, 4, 2), ConvBlock(7, 18, 4, 2), impl="triton")
    with watching("two blocks") as calls:
        chain(torch.randn(2, 3, 8, 8)).sum().backward()
    return list(calls.values())[:2]


def rules_tile(call: Call) -> GemmTile | None:
    """Return how the rule, or the table in force, tiles a pass; None if ATen computes it."""
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
    """List what might be better than the rule, the likeliest first.

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
