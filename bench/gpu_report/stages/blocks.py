"""Operations, trunks and generators against their peers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.baselines import COMPILED
from bench.cases import Planned, blocks, ops
from bench.gpu_report.measured import measured
from bench.gpu_report.stage import Context, main
from bench.gpu_report.workload import FIVE
from fastinfogan_kernels.runtime.backend import native_available

_DRY_OPS = 3


def stage(context: Context) -> None:
    """Blocks first: they are most of an iteration. What is compiled comes last."""
    names = ["mnist"] if context.dry else list(FIVE)
    batch = 2 if context.dry else 128
    plans = blocks.planned(context.device, names, ["bf16"], batch)
    every = ops.planned(context.device, names, ["bf16"], batch)
    if context.dry:
        plans, every = plans[:1], every[:_DRY_OPS]
        if not native_available():
            context.note("blocks", "on a CPU they need C++ for CPU tensors, which is not compiled")
            plans = []
    for plan in (*plans, *every):
        context.run(f"{plan.group}, {plan.name}", lambda plan=plan: _quickly(context, plan))  # type: ignore[misc]
    if context.dry:
        return
    for plan in plans:
        alone = f"{plan.group}, {plan.name}"
        check = alone not in context.right
        context.run(
            f"{alone}, with {COMPILED}",
            lambda plan=plan, check=check: measured(  # type: ignore[misc]
                context, plan, budget=1.0, check=check
            ),
            limit=120.0,
        )


def _quickly(context: Context, plan: Planned) -> Mapping[str, Any]:
    """Without the peers that are compiled for each shape, which takes seconds each."""

    def make(device: Any) -> Any:  # noqa: ANN401
        case = plan.make(device)
        peers = {name: run for name, run in case.baselines.items() if name != COMPILED}
        return replace(case, baselines=peers)

    whole = plan.group == "blocks"
    return measured(
        context, replace(plan, make=make), budget=0.3 if context.dry else 0.5 if whole else 0.1,
        rounds=11, weigh=whole,
    )  # fmt: skip


if __name__ == "__main__":
    main(stage, "blocks")
