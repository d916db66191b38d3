"""Every operation and chain, and whole iterations, on the GPU against fp64."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from bench.gpu_report import chains, modules, operations
from bench.gpu_report.chains import ChainCase
from bench.gpu_report.judge import judge
from bench.gpu_report.stage import Context, FailedError, main
from bench.gpu_report.workload import FIVE, experiment, make_iteration, widen
from fastinfogan.engine import Iteration
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan_kernels.conv_block.launch_table import Choice, GemmTile, using_table

DTYPES: dict[ComputedIn, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
Item = Callable[[], dict[str, Any]]
_STEP = 5
_CHAIN = 120.0
"""Seconds for a chain, whose kernels may have to be compiled."""


def stage(context: Context) -> None:
    """Most valuable first: what is trained by default, bf16; then the rest."""
    # Under the interpreter bf16 is wrong, in every version of Triton.
    precisions: list[ComputedIn] = ["fp32", "fp16"] if context.dry else list(DTYPES)
    names = ("mnist",) if context.dry else FIVE
    for i, precision in enumerate(precisions):
        for case in _networks(context, names):
            _chain(context, case, precision)
        if i == 0:
            context.run("a planted error is caught", lambda: _planted(context))
        if i == 0 or not context.dry:
            for name, item in _iterations(context, precision, names):
                context.run(name, item, limit=_CHAIN)
        _operations(context, [precision], FIVE if i == 0 else ("mnist", "celeba"))
        for case in chains.odd_chains(dry=context.dry):
            _chain(context, case, precision)
    _candidates(context, precisions[0])
    _modules(context, precisions)


def _networks(context: Context, names: tuple[str, ...]) -> list[ChainCase]:
    found = []
    for name in names:
        # Batch norm of fewer than eight rows magnifies what is rounded.
        e = experiment(name, dry=context.dry, batch=8 if context.dry else None)
        every = chains.chains_of(e)
        # Interpreted, a trunk or a generator takes minutes.
        found += [c for c in every if not context.dry or len(c.shape) == 2]
    return [c for c in found if not (context.dry and "generator" in c.name)]


def _chain(context: Context, case: ChainCase, precision: ComputedIn) -> None:
    name = f"{case.name}, {precision}"
    if name in context.known:
        return
    context.run(name, lambda: compare(case, precision, context.device), limit=_CHAIN)
    if name in context.failed:
        for alone in case.alone():
            context.run(
                f"{alone.name}, {precision}",
                lambda alone=alone: compare(alone, precision, context.device),  # type: ignore[misc]
                limit=_CHAIN,
            )


def compare(case: ChainCase, precision: ComputedIn, device: torch.device) -> dict[str, Any]:
    """A chain by the kernels, by torch, and in fp64."""
    dtype = DTYPES[precision]
    with PRECISIONS[precision].arithmetic():
        found = chains.ours(case, device, dtype)
        theirs, truth = chains.torchs(case, device, dtype), chains.truth(case, device, dtype)
        return judge(found, theirs, truth, dtype, case.kinks(dtype))


def _planted(context: Context) -> dict[str, Any]:
    """The comparison sees a slope that is off, and a tile of a gradient that is not written."""
    (case, *_) = chains.odd_chains(dry=context.dry)
    dtype, device = torch.float32, context.device
    wrong = replace(
        case, layers=tuple(replace(each, slope=each.slope * 1.01) for each in case.layers)
    )
    with PRECISIONS["fp32"].arithmetic():
        theirs, truth = chains.torchs(case, device, dtype), chains.truth(case, device, dtype)
        unwritten = dict(chains.ours(case, device, dtype))
        unwritten["1.weight"] = unwritten["1.weight"].clone()
        unwritten["1.weight"][:16, :16] = 0
        for what, found in (
            ("a slope that is off by a hundredth", chains.ours(wrong, device, dtype)),
            ("a tile that is not written", unwritten),
        ):
            try:
                judge(found, theirs, truth, dtype)
            except FailedError:
                continue
            raise FailedError(f"{what} is not noticed", {})
    return {"planted": 2}


def _operations(context: Context, precisions: list[ComputedIn], names: tuple[str, ...]) -> None:
    of = [experiment(name, dry=context.dry) for name in (names[:1] if context.dry else names)]
    for name, check in operations.checks(of, [DTYPES[p] for p in precisions]):
        context.run(name, lambda check=check: _precisely(check, context.device))  # type: ignore[misc]


def _precisely(check: operations.Check, device: torch.device) -> dict[str, Any]:
    with PRECISIONS["fp32"].arithmetic():
        return check(device)


def _modules(context: Context, precisions: list[ComputedIn]) -> None:
    """A model of somebody's own, fused; torch.compile last, which takes its time."""
    for compiled in (False, True):
        for precision in precisions[:1] if compiled else precisions:
            name = f"a fused model{', compiled' if compiled else ''}, {precision}"
            if compiled and (context.dry or context.left < 20):
                context.note(name, "torch.compile takes longer than is left")
                continue

            def item(
                dtype: torch.dtype = DTYPES[precision], *, compiled: bool = compiled
            ) -> dict[str, Any]:
                return modules.fused_model(context.device, dtype, compiled=compiled)

            context.run(name, item, limit=_CHAIN)


def _candidates(context: Context, precision: ComputedIn) -> None:
    """What the launch table may name instead of the rule's choice."""
    choices = {
        "by ATen": Choice("aten"),
        "small tiles": Choice("gemm", GemmTile(64, 32, 32, stages=2)),
        "many splits": Choice("gemm", GemmTile(64, 32, 32, splits=7)),
    }
    if context.dry:
        choices["small tiles"] = Choice("gemm", GemmTile(16, 16, 16))
        choices["many splits"] = Choice("gemm", GemmTile(16, 32, 16, splits=7))
    cases = chains.odd_chains(dry=True)[:2]
    for what, choice in choices.items():
        for case in cases:

            def item(case: ChainCase = case, choice: Choice = choice) -> dict[str, Any]:
                with using_table({"*": choice}):
                    return compare(case, precision, context.device)

            context.run(f"{case.name}, {what}, {precision}", item)


def _iterations(
    context: Context, precision: ComputedIn, names: tuple[str, ...]
) -> Iterator[tuple[str, Item]]:
    for name in names:

        def item(name: str = name) -> dict[str, Any]:
            return compare_iteration(name, precision, context)

        yield f"an iteration of {name}, {precision}", item


def compare_iteration(name: str, precision: ComputedIn, context: Context) -> dict[str, Any]:
    """Losses, bounds and gradients of one iteration: the kernels', plain torch's, and in fp64.

    D's update moves no weight here, so that all sides' G steps read the same D.
    """
    e = experiment(name, dry=context.dry)
    sides: dict[str, tuple[ComputedIn, Any]] = {
        # Interpreted, an iteration takes minutes: in a dry run C++ stands in for the kernels.
        "ours": (precision, "auto" if context.dry else "triton"),
        "theirs": (precision, "reference"),
        "truth": ("fp64", "reference"),
    }
    results = {}
    for side, (computed, impl) in sides.items():
        results[side] = _gradients(make_iteration(e, computed, context.device, impl))
    return judge(
        results["ours"], results["theirs"], results["truth"], DTYPES[precision],
        set(results["truth"]),
    )  # fmt: skip


def _gradients(iteration: Iteration) -> dict[str, torch.Tensor]:
    widen(iteration)
    scale = 1.0
    if iteration.loss_scale:
        scale = 64.0
        iteration.loss_scale.state[0] = scale
        iteration.restored()
    found: dict[str, torch.Tensor] = {}
    for step in ("d", "g"):
        update = getattr(iteration, f"_{step}_update")
        group = getattr(iteration, f"{step}_adam").param_groups[0]
        group["lr"] = 0.0

        def watched(gradients: Any, step: str = step, update: Any = update) -> None:  # noqa: ANN401
            for i, g in enumerate(gradients):
                found[f"{step.upper()} step, parameter {i}"] = g.double() / scale
            update(gradients)

        setattr(iteration, f"_{step}_update", watched)
    iteration.run(_STEP)
    if iteration.tally.tolist() != [1, 0, 0]:
        raise FailedError(f"the iteration was skipped: tally {iteration.tally.tolist()}", {})
    found["losses and bounds"] = iteration.sums.clone()
    return found


if __name__ == "__main__":
    main(stage, "correctness")
