"""Whole iterations of the experiments, see bench.cases.iteration."""

from bench.cases import Planned
from bench.cases.iteration import planned as plans
from bench.conftest import Measured, cases, device


@cases(plans(device()))
def test_iteration(planned: Planned, measured: Measured) -> None:
    measured(planned.make(device()), planned.budget)
