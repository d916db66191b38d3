"""Trunk and generator of each experiment, forward and backward, see bench.cases.blocks."""

from bench.cases import Planned
from bench.cases.blocks import planned as plans
from bench.conftest import Measured, cases, device


@cases(plans(device()))
def test_chain(planned: Planned, measured: Measured) -> None:
    measured(planned.make(device()), planned.budget)
