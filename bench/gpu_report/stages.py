"""The stages of the report, most valuable first, and how the minutes are shared out."""

from collections.abc import Sequence
from dataclasses import dataclass

PICTURE = "mnist_c1.png"
"""What MNIST's run draws, in the report's folder."""
CLOSING = 12.0
"""Seconds left for the page and the table."""
_KILLED = 3.0
"""Seconds that a stage which had to be killed takes beyond its limit."""


@dataclass(frozen=True)
class Stage:
    """A stage of the report.

    Attributes:
        name: for `--only` and `--skip`.
        title: for the page.
        weight: its part of the time beside the other stages'; seconds, of eight minutes.
        run: "module:function" of this package, which takes a `Context`; "" for the test suite.
        shown: numbers of its items that are worth a line of the table.
        least: seconds below which it is not worth starting.
        most: seconds that it may take of however many minutes; None for any number.
        interpreted: in a dry run Triton's interpreter stands in for the GPU.
    """

    name: str
    title: str
    weight: float
    run: str
    shown: tuple[str, ...] = ()
    least: float = 5.0
    most: float | None = None
    interpreted: bool = False


STAGES = (
    Stage("environment", "The machine", 40, "machine:environment", ("name", "missing"), most=60.0),
    Stage("compile", "The kernels, compiled in parallel beforehand", 60, "machine:compile_kernels",
          ("kernels", "with stack", "compiled after all")),
    Stage("correctness", "The test suite of the kernels", 100, "", interpreted=True),
    Stage("capture", "Capture, replay, the same bits at every run, resume", 40, "capture:capture",
          ("tensors",)),
    Stage("iteration", "An iteration against PyTorch: first right, then timed", 100,
          "benchmarks:iteration", ("experiment", "us, fastinfogan", "of best", "of compiled")),
    Stage("mnist", "5,000 iterations of MNIST", 30, "training:mnist",
          ("seconds", "us an iteration", "L_I of c1", "error of c1")),
    Stage("tuning", "Launch parameters, tuned", 60, "tuning:tuning", ("of the rule",),
          interpreted=True),
    Stage("tuned", "An iteration with the tuned table", 20, "tuning:tuned",
          ("experiment", "of the rule")),
    Stage("blocks", "Operations and blocks against PyTorch", 35, "benchmarks:blocks",
          ("of eager", "of best")),
    Stage("scaling", "An iteration at batches of 32 to 4,096", 25, "benchmarks:scaling",
          ("experiment", "batch", "images/s")),
    Stage("memory", "Memory", 15, "resources:memory", ("experiment", "side", "MiB allocated")),
    Stage("profile", "One iteration, kernel by kernel", 15, "resources:profile",
          ("launches", "us busy")),
)  # fmt: skip


def allowance(left: float, coming: Sequence[Stage]) -> float:
    """Share out time: seconds for the first of the coming stages.

    What it leaves is shared by those behind it; one that needs a little more than its part to be of
    use may take it from them.

    Args:
        left: seconds until everything must be done.
        coming: the stages that are yet to run, in their order.

    Returns:
        Its limit; 0 if it cannot be reached.
    """
    stage, usable = coming[0], left - CLOSING - _KILLED
    seconds = usable * stage.weight / sum(each.weight for each in coming)
    seconds = min(max(seconds, stage.least), usable, stage.most or usable)
    return seconds if seconds >= min(stage.least, stage.most or stage.least) else 0.0
