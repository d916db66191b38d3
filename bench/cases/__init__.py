"""What is measured: fastinfogan's implementation, baselines, the least work, and a check.

A case is planned by name and made when it is measured, so that memory holds one at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from bench.timing.clock import Run
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan.experiments import Experiment

Group = Literal["ops", "blocks", "iteration", "data", "startup"]
Timed = Literal["alone", "steady", "host"]
"""alone: each run for itself, on a GPU captured into a graph and with a flushed cache. steady: run
after run as in training, neither captured by the clock nor flushed. host: by the host's clock, once
a round, never warmed up: whole processes, or what has threads of its own."""


@dataclass(frozen=True)
class Case:
    """Something to be measured.

    Attributes:
        group: where it belongs.
        name: within the group.
        run: fastinfogan's implementation.
        baselines: PyTorch's, by name.
        check: compares results with the reference's at these shapes.
        experiment: whose shapes, or None.
        precision: of products, or None.
        batch: images in a step, or None.
        flops: of the products of one run.
        bytes: the fewest that one run must read and write: each operand and result once.
        timed: how a run is timed.
        units: that one run does, such as iterations; seconds, FLOPs and bytes are of one of them.
        more: what else a row should hold.
    """

    group: Group
    name: str
    run: Run
    baselines: Mapping[str, Run]
    check: Callable[[], object]
    experiment: str | None = None
    precision: ComputedIn | None = None
    batch: int | None = None
    flops: int = 0
    bytes: int = 0
    timed: Timed = "alone"
    units: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a case is made for.

    Attributes:
        group: of the case.
        name: of the case.
        experiment: whose shapes.
        precision: of products.
        batch: images in a step.
        device: where it runs.
    """

    group: Group
    name: str
    experiment: Experiment
    precision: ComputedIn
    batch: int
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return PRECISIONS[self.precision].computed

    @property
    def true_dtype(self) -> torch.dtype:
        """The dtype of the truth: fp64 for fp32; fp32, which is cheap everywhere, for 16 bits."""
        return torch.float64 if self.dtype == torch.float32 else torch.float32

    def case(
        self,
        run: Run,
        baselines: Mapping[str, Run],
        check: Callable[[], object],
        **more: Any,  # noqa: ANN401 - attributes of Case
    ) -> Case:
        """Make the case.

        Args:
            run: fastinfogan's implementation.
            baselines: PyTorch's, by name.
            check: compares results.
            more: further attributes of `Case`.
        """
        e = self.experiment.name
        return Case(
            self.group, self.name, run, baselines, check, e, self.precision, self.batch, **more
        )


@dataclass(frozen=True)
class Planned:
    """A case that can be made.

    Attributes:
        group: where it belongs.
        name: the case's.
        make: makes it on a device.
        short: whether it belongs to the set that takes about a minute.
        budget: seconds of timing that it is worth.
    """

    group: Group
    name: str
    make: Callable[[torch.device], Case]
    short: bool = False
    budget: float = 0.5


def plan(
    make: Callable[[Setting], Case],
    group: Group,
    name: str,
    experiment: Experiment,
    precision: ComputedIn,
    batch: int,
    *,
    short: bool = False,
    budget: float = 0.5,
) -> Planned:
    """Plan a case that is made for a setting."""

    def on(device: torch.device) -> Case:
        return make(Setting(group, name, experiment, precision, batch, device))

    return Planned(group, name, on, short, budget)
