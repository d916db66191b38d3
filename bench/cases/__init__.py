"""What is measured: fastinfogan's implementation, baselines, the least work, and a check.

A case is planned by name and made when it is measured, so that memory holds one at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from bench.baselines import COMPILED, EAGER, reset_compiled
from bench.timing.clock import Run
from fastinfogan.engine.config import PRECISIONS, ComputedIn
from fastinfogan.experiments import Experiment

Group = Literal["ops", "blocks", "iteration", "data", "startup"]
BATCH = 128
SEED = 1


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
        timed: "alone": each run for itself, on a GPU captured into a graph and with a flushed
            cache. "steady": run after run as in training, neither captured by the clock nor
            flushed. "host": by the host's clock, once a round, never warmed up: whole processes, or
            what has threads of its own.
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
    timed: Literal["alone", "steady", "host"] = "alone"
    units: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a case is made for: its names, shapes, precision of products and device."""

    group: Group
    name: str
    experiment: Experiment
    precision: ComputedIn
    batch: int
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
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
        """Make the case; `more` are further attributes of `Case`."""
        e = self.experiment.name
        return Case(
            self.group, self.name, run, baselines, check, e, self.precision, self.batch, **more
        )

    def randn(self, *shape: int, dtype: torch.dtype | None = None, seed: int = SEED) -> Tensor:
        """Draw normal numbers, the same on every device, by default in the activations' dtype."""
        source = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=source).to(self.device, dtype or self.dtype)

    def with_compiled(
        self, baseline: Callable[[Callable[..., Any]], Run], composed: Callable[..., Any]
    ) -> dict[str, Any]:
        """Make the baselines of a composition, as it is and on a GPU compiled.

        Args:
            baseline: makes a run of the composition.
            composed: of PyTorch's operations.

        Returns:
            "baselines" and "more" of a case.
        """
        found = {EAGER: baseline(composed)}
        if self.device.type != "cuda":
            left_out = f"{COMPILED}: seconds of compiling a shape"
            return {"baselines": found, "more": {"left out": left_out}}
        reset_compiled()
        found[COMPILED] = baseline(torch.compile(composed, dynamic=False))
        return {"baselines": found, "more": {}}


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
