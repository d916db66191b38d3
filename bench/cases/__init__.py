"""What is measured: for each case ours, its peers, what it needs at least, and whether it is right.

A case is planned by name and made when its turn comes, so that memory holds one at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from bench.timing.clock import Run
from fastinfogan.engine.precision import ComputedIn

Group = Literal["ops", "blocks", "iteration", "data", "startup"]
Timed = Literal["alone", "steady", "host"]
"""Alone: each run for itself, a GPU's captured into a graph and its cache flushed. Steady: run
after run as they come in training, neither captured by the clock nor flushed. Host: by the host's
clock, once a round, never warmed up: whole processes, or what has threads of its own."""


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
        precision: in which it multiplies, or None.
        batch: images in a step, or None.
        flops: of the products of one run.
        bytes: the fewest that one run must read and write: each operand and result once.
        timed: how a run is timed.
        units: that one run does, iterations say; seconds, FLOPs and bytes are of one of them.
        more: what else a row should tell.
    """

    group: Group
    name: str
    run: Run
    baselines: Mapping[str, Run]
    check: Callable[[], None]
    experiment: str | None = None
    precision: ComputedIn | None = None
    batch: int | None = None
    flops: int = 0
    bytes: int = 0
    timed: Timed = "alone"
    units: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)


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
