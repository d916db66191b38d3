"""Reference and engine trained side by side, and whether their trajectories agree."""

from bench.parity.report import Report, compare, table
from bench.parity.sides import Setup
from bench.parity.statistics import EARLY, LEAST_SEEDS, WINDOWS, Judgement, judge

__all__ = [
    "EARLY",
    "LEAST_SEEDS",
    "WINDOWS",
    "Judgement",
    "Report",
    "Setup",
    "compare",
    "judge",
    "table",
]
