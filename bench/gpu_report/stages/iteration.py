"""The roofline of the machine, and an iteration of each experiment against its peers."""

from collections.abc import Mapping
from typing import Any

from bench.baselines import BEST, COMPILED, CUDAGRAPHS, EAGER
from bench.cases import Planned
from bench.cases.iteration import planned
from bench.gpu_report.measured import measured
from bench.gpu_report.stage import Context, main
from bench.gpu_report.workload import FIVE
from fastinfogan.engine.precision import ComputedIn

_BATCH = 128


def stage(context: Context) -> None:
    """The peers that need no compiling for all, then those that do, as time allows."""
    context.run("roofline", lambda: _ceilings(context))
    names = ("mnist",) if context.dry else FIVE
    batch = 4 if context.dry else _BATCH
    quick = [EAGER] if context.dry else [EAGER, BEST]
    budget = 0.5 if context.dry else 2.0
    for name in names:
        (plan,) = planned(context.device, [name], ["bf16"], [batch], quick)
        context.run(
            plan.name,
            lambda plan=plan: measured(context, plan, budget=budget),  # type: ignore[misc]
            limit=90.0,
        )
    if context.dry:
        return
    for name in names:
        _against_all(context, planned(context.device, [name], ["bf16"], [batch], None)[0])
    for precision in _OTHERS:
        (plan,) = planned(context.device, ["mnist"], [precision], [batch], [EAGER])
        context.run(
            plan.name,
            lambda plan=plan: measured(context, plan, budget=1.0),  # type: ignore[misc]
            limit=60.0,
        )


_OTHERS: tuple[ComputedIn, ...] = ("fp16", "fp32", "tf32")


def _against_all(context: Context, plan: Planned) -> None:
    """With what torch.compile makes; what was found right above is not checked again."""
    name = f"{plan.name}, with {COMPILED} and {CUDAGRAPHS}"
    if context.left < 25:
        context.note(name, "compiling the peers takes longer than is left")
        return
    check = plan.name not in context.right
    context.run(name, lambda: measured(context, plan, budget=3.0, check=check), limit=240.0)


def _ceilings(context: Context) -> Mapping[str, Any]:
    """The rates that no program exceeds by much."""
    precisions: list[ComputedIn] = ["bf16", "fp32"] if context.dry else ["bf16", "fp16", "fp32"]
    precisions += [] if context.dry else ["tf32"]
    found = {f"{p}, TFLOP/s": round(context.roofline.gemm_rate(p) / 1e12, 2) for p in precisions}
    found["copy, GB/s"] = round(context.roofline.copy_rate() / 1e9, 1)
    context.fact(roofline=context.roofline.to_dict())
    return found


if __name__ == "__main__":
    main(stage, "iteration")
