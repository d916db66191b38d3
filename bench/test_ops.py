"""Single operations at the experiments' shapes, see bench.cases.ops."""

from bench.cases import Planned
from bench.cases.ops import planned as plans
from bench.conftest import Measured, cases, device


@cases(plans(device()))
def test_operation(planned: Planned, measured: Measured) -> None:
    measured(planned.make(device()), planned.budget)
