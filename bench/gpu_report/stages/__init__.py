"""The stages, most valuable first; each module runs by itself as `python -m`."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.gpu_report.budget import Share


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        share: its name and what it may take.
        title: for the page.
        interpreted: whether in a dry run Triton's interpreter stands in for the GPU.
        module: of the stage.
    """

    share: Share
    title: str
    interpreted: bool = False
    module: str = ""

    @property
    def name(self) -> str:
        """The stage's."""
        return self.share.name

    @property
    def environment(self) -> Mapping[str, str]:
        """Of its process in a dry run."""
        return {"TRITON_INTERPRET": "1"} if self.interpreted else {}


def _stage(
    name: str,
    weight: float,
    title: str,
    *,
    least: float = 5.0,
    most: float | None = None,
    interpreted: bool = False,
) -> Stage:
    module = f"bench.gpu_report.stages.{name}"
    return Stage(Share(name, weight, least, most), title, interpreted, module)


STAGES = (
    _stage("environment", 40, "The machine", most=60.0),
    _stage("compile", 60, "The kernels, compiled side by side beforehand"),
    _stage("correctness", 90, "Every operation and chain against fp64", interpreted=True),
    _stage("capture", 40, "Capture, replay, the same bits at every run, resume"),
    _stage("iteration", 100, "An iteration at batch 128 against its peers"),
    _stage("mnist", 30, "5,000 iterations of MNIST"),
    _stage("tuning", 60, "Launch parameters, tuned", interpreted=True),
    _stage("tuned", 20, "An iteration with the tuned table"),
    _stage("blocks", 35, "Operations and blocks against their peers"),
    _stage("scaling", 25, "An iteration at batches of 32 to 4,096"),
    _stage("memory", 15, "Memory"),
    _stage("profile", 15, "One iteration, kernel by kernel"),
)
"""Weights are seconds, of eight minutes."""
