"""Reference and engine trained side by side, and whether their trajectories agree."""

from fastinfogan.parity.report import Report, compare, table
from fastinfogan.parity.sides import Setup
from fastinfogan.parity.statistics import EARLY, LEAST_SEEDS, WINDOWS, Judgement, judge

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
