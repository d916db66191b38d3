"""What the tuned table is worth: right first, then timed against the rule."""

from collections.abc import Mapping
from typing import Any

from bench.cases.iteration import images_for, iteration_for
from bench.gpu_report import chains
from bench.gpu_report.stage import Context, FailedError, main
from bench.gpu_report.stages.correctness import compare
from bench.gpu_report.stages.tuning import NAME
from bench.gpu_report.workload import FIVE, experiment
from bench.timing.clock import clock_for
from bench.timing.interleaved import Interleaved
from fastinfogan.engine.execution import Execution, choose_execution
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.conv_block.launch_table import TABLE, Choice, read_table, using_table


def stage(context: Context) -> None:
    """By experiment: its trunk and generator against fp64, then an iteration's time."""
    file = context.out / NAME
    table = read_table(file if file.exists() else TABLE)
    context.fact(entries=len(table))
    if not table:
        context.note("all", "the table is empty: there is nothing to compare")
        return
    for name in ("mnist",) if context.dry else FIVE:
        if not context.dry:
            for case in chains.chains_of(experiment(name, dry=False))[:2]:
                context.run(
                    f"{case.name} by the table",
                    lambda case=case: _right(context, case, table),  # type: ignore[misc]
                )
        context.run(f"{name}, an iteration", lambda name=name: _timed(context, name, table))  # type: ignore[misc]


def _right(context: Context, case: chains.ChainCase, table: dict[str, Choice]) -> Mapping[str, Any]:
    with using_table(table):
        return compare(case, "bf16", context.device)


def _execution(context: Context, e: Experiment, table: dict[str, Choice]) -> Execution:
    """Warmed up and captured by a table."""
    images = images_for(e, 64 if context.dry else 4096, context.device)
    kind, _ = choose_execution("auto", context.device)
    execution = kind(iteration_for(e, "bf16", e.batch_size, images))
    with using_table(table):
        execution.prepare()
        execution.run(0, execution.iterations_per_call)
    context.wait()
    return execution


def _timed(context: Context, name: str, table: dict[str, Choice]) -> Mapping[str, Any]:
    e = experiment(name, dry=context.dry)
    executions = {"tuned": _execution(context, e, table), "the rule": _execution(context, e, {})}
    losses = {side: execution.iteration.read() for side, execution in executions.items()}
    for what in ("d_loss", "g_loss"):
        one, other = (losses[side][what] for side in executions)
        if not abs(one - other) <= 0.05 * max(1.0, abs(other)):
            raise FailedError(f"{what} is {one:.4f} by the table, {other:.4f} by the rule", {})
    at_once = executions["tuned"].iterations_per_call
    steps = {side: iter(range(at_once, 1 << 30, at_once)) for side in executions}
    tables = {"tuned": table, "the rule": {}}

    def run(side: str) -> None:
        with using_table(tables[side]):  # call by call it is looked up each time
            executions[side].run(next(steps[side]), at_once)

    pair = Interleaved(
        {side: (lambda side=side: run(side)) for side in executions},  # type: ignore[misc]
        clock_for(context.device),
        steady=True,
        units=at_once,
    )
    pair()
    pair.clear()
    pair.go_on(15, 1.0)
    times = pair.times
    ratio = times.ratio("tuned", "the rule")
    return {
        "experiment": name,
        "us, tuned": round(1e6 * times.spread("tuned").median, 2),
        "us, the rule": round(1e6 * times.spread("the rule").median, 2),
        "of the rule": round(ratio.median, 3),
        "quartiles": [round(ratio.low, 3), round(ratio.high, 3)],
    }


if __name__ == "__main__":
    main(stage, "tuned")
