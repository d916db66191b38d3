"""What is measured: for each case ours, its peers, what it needs at least, and whether it is right.

A case is planned by name and made when its turn comes, so that memory holds one at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from bench.measuring.clock import Run
from fastinfogan.engine.precision import ComputedIn

Group = Literal["ops", "blocks", "iteration", "data", "startup"]


class MismatchError(AssertionError):
    """Ours and the reference do not compute the same: not to be timed."""


@dataclass(frozen=True)
class Case:
    """Something to be measured.

    Attributes:
        group: where it belongs.
        name: within the group.
        ours: one run.
        peers: one run of each, by name.
        check: compares ours with the reference at these shapes.
        experiment: whose shapes, or None.
        precision: in which it multiplies, or None.
        batch: images in a step, or None.
        flops: of the products of one run.
        bytes: the fewest that one run must read and write: each operand and result once.
        more: what else a row should tell.
    """

    group: Group
    name: str
    ours: Run
    peers: Mapping[str, Run]
    check: Callable[[], None]
    experiment: str | None = None
    precision: ComputedIn | None = None
    batch: int | None = None
    flops: int = 0
    bytes: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A case that can be made.

    Attributes:
        group: where it belongs.
        name: the case's.
        make: makes it on a device.
    """

    group: Group
    name: str
    make: Callable[[torch.device], Case]
