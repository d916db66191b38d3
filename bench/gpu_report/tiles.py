"""The passes of an iteration, one by one, and by what each might be computed instead.

The passes are noted while an iteration runs, with their tensors, so that each can be run again with
another cut or by ATen.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.compiled import compile_launches
from bench.gpu_report.ahead import META
from bench.gpu_report.workload import FIVE, experiment, make_iteration
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan_kernels.conv_block import candidates
from fastinfogan_kernels.conv_block.bn_stats import Backward, Forward
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.geometry import ConvGeometry
from fastinfogan_kernels.conv_block.implicit_gemm import NOTHING, Epilogue
from fastinfogan_kernels.conv_block.launch_table import Choice, GemmTile, Pass, key, using_table
from fastinfogan_kernels.runtime.launch import recording
from fastinfogan_kernels.runtime.machine import Machine, assuming, power_of_two

_PRODUCTS = ("implicit_gemm_kernel", "weight_gradient_kernel")
_MOST = 9
"""Cuts that are tried beside the rule's."""
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """A pass of a layer, as an iteration ran it.

    Attributes:
        of: the experiment.
        which: the pass.
        key: the launch table's.
        flat: a fully connected layer.
        flops: of its product.
        columns: of the result, at the most.
        run: runs it once more; its results by name.
    """

    of: str
    which: Pass
    key: str
    flat: bool
    flops: int
    columns: int
    run: Callable[[], Results]


@contextmanager
def watching(name: str) -> Iterator[list[Call]]:
    """Note the passes that are run inside, each key once."""
    multiply, weight_gradient = candidates.multiply, candidates.weight_gradient
    calls: dict[str, Call] = {}

    def note(
        which: Pass, x: Tensor, weight: Tensor, gather: ConvGeometry, run: Callable[[], Results]
    ) -> None:
        w = gather.window
        flops = 2 * x.shape[0] * w.rows * w.columns * weight.numel()
        call = Call(
            name, which, key(which, x, weight, gather), weight.dim() == 2, flops,
            max(weight.shape[:2]), run,
        )  # fmt: skip
        calls.setdefault(call.key, call)

    def watched_multiply(
        operand: Deferred,
        weight: Tensor,
        gather: ConvGeometry,
        groups: int,
        behind: Epilogue = NOTHING,
        *,
        backward: bool = False,
    ) -> Any:  # noqa: ANN401
        def run() -> Results:
            y, tiles = multiply(operand, weight, gather, groups, behind, backward=backward)
            return {"y": y, **_left(behind.into, tiles is not None)}

        note("data_gradient" if backward else "forward", operand.x, weight, gather, run)
        return multiply(operand, weight, gather, groups, behind, backward=backward)

    def watched_gradient(
        operand: Deferred, gradient: Deferred, weight: Tensor, gather: ConvGeometry, groups: int
    ) -> Tensor:
        def run() -> Results:
            return {"dw": weight_gradient(operand, gradient, weight, gather, groups)}

        note("weight_gradient", operand.x, weight, gather, run)
        return weight_gradient(operand, gradient, weight, gather, groups)

    module: Any = candidates
    module.multiply, module.weight_gradient = watched_multiply, watched_gradient
    found: list[Call] = []
    try:
        yield found
    finally:
        module.multiply, module.weight_gradient = multiply, weight_gradient
        found += calls.values()


def _left(into: Forward | Backward | None, tiled: bool) -> Results:
    """What a product's epilogue leaves beside the map."""
    if into is None or not tiled:
        return {}
    if isinstance(into, Forward):
        return {"params": into.params, "rstd": into.rstd}
    return {f"gradient {i}": t for i, t in enumerate(into.results)}


def calls_of(name: str, precision: ComputedIn, device: torch.device) -> list[Call]:
    """The passes of an experiment's iteration, most expensive first."""
    # Tensors without storage stand for a GPU's while launches are recorded.
    recorded = recording() if device.type == "meta" else nullcontext()
    with recorded, PRECISIONS[precision].arithmetic(), torch.no_grad():
        iteration = make_iteration(experiment(name, dry=False), precision, device)
        with watching(name) as calls:
            iteration.program()  # without a workspace, so that no tensor is written over
    return sorted(calls, key=lambda call: -call.flops)


def all_calls(precision: ComputedIn, device: torch.device) -> list[Call]:
    """Of the five, by turns, so that each gets its most expensive passes tuned."""
    each = [calls_of(name, precision, device) for name in FIVE]
    turns = [call for row in zip_longest(*each) for call in row if call is not None]
    # The same pass of two experiments is one.
    return list({_without_device(call.key): call for call in reversed(turns)}.values())[::-1]


def _without_device(name: str) -> str:
    return name.partition("|")[2]


def rules_tile(call: Call) -> GemmTile | None:
    """How the rule, or the table in force, cuts a pass; None if ATen computes it."""
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
        tile: how the rule cuts it.
        present: what the present table says of it.
    """
    found: list[Choice] = []
    if present is not None and present != Choice():
        found.append(present)
    if not call.flat:
        found.append(Choice("aten"))
    if tile is not None:
        cuts = [cut for cut in _around(tile, call) if _sensible(cut, call) and cut != tile]
        found += [Choice("gemm", cut) for cut in dict.fromkeys(cuts)][:_MOST]
    return found


def _around(t: GemmTile, call: Call) -> Iterator[GemmTile]:
    other = 4 if t.warps == 8 else 8
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
    yield replace(t, warps=other)
    yield replace(t, stages=max(t.stages - 1, 1))


def _sensible(t: GemmTile, call: Call) -> bool:
    return (
        16 <= t.m <= 256
        and 16 <= t.n <= min(256, power_of_two(call.columns, 16, 256))
        and 16 <= t.k <= 128
        and t.m * t.n <= 256 * 128
        and t.m * t.n >= 32 * t.warps
        and 1 <= t.stages <= 5
        and 1 <= t.splits <= 64
    )


def with_choice(call: Call, choice: Choice) -> Results:
    """A pass, computed by a choice."""
    with using_table({"*": choice}):
        return call.run()


def alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """Whether two ways of computing a pass agree but for roundings; if not, where."""
    for name, a in one.items():
        b = other.get(name)
        if b is None:
            return f"{name} is missing"
        a, b = a.double(), b.double()
        if a.shape != b.shape or not torch.isfinite(b).all():
            return f"{name} is not finite, or of another shape"
        scale = a.square().mean().sqrt().clamp(min=1e-30)
        off = ((a - b).square().mean().sqrt() / scale).item()
        eps = torch.finfo(one[name].dtype).eps
        # Sums in another order, of operands that were rounded alike.
        if not off <= max(2 * eps, 2e-3):
            return f"{name} is off by {off:.1e}"
    return ""


def entry(choice: Choice) -> dict[str, Any]:
    """A choice as the launch table's JSON has it."""
    tile = None if choice.tile is None else asdict(choice.tile)
    return {"candidate": choice.candidate, **({"tile": tile} if tile else {})}


def merged(
    present: Mapping[str, Any], tuned: Mapping[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """The table to be committed.

    Args:
        present: the installed one's entries, as JSON.
        tuned: by key the new entry, or None where the rule is as good as any.

    Returns:
        Sorted by key. What was not tuned stays.
    """
    kept = {name: value for name, value in present.items() if name not in tuned}
    kept |= {name: value for name, value in tuned.items() if value is not None}
    return dict(sorted(kept.items()))


def tasks(calls: Sequence[Call]) -> Iterator[tuple[int, Choice]]:
    """What is to be compiled, in the order in which it is timed: number of a call, and a choice."""
    for number, call in enumerate(calls):
        for choice in choices_beside(call, rules_tile(call), None):
            yield number, choice


def main() -> None:
    """A worker, see `ahead`: compiles its part of the candidates and tells how far it is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--part", type=int, required=True)
    parser.add_argument("--of", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--precision", default="bf16")
    asked = parser.parse_args()
    deadline = time.monotonic() + asked.seconds
    torch.set_num_threads(1)
    with assuming(Machine(**json.loads(asked.machine))):
        calls = all_calls(asked.precision, META)
        for i, (number, choice) in enumerate(tasks(calls)):
            if time.monotonic() > deadline:
                return
            if i % asked.of == asked.part and choice.tile is not None:
                try:
                    with recording() as launches, torch.no_grad():
                        with_choice(calls[number], choice)
                    compile_launches(launches, asked.target)
                except Exception:  # a cut that the compiler refuses is none
                    traceback.print_exc()
            asked.file.write_text(str(number))
        asked.file.write_text(str(len(calls)))


if __name__ == "__main__":
    main()
