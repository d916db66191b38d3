"""Reference and engine trained side by side, and whether their trajectories agree."""

from fastinfogan.parity.report import Report, compare, table
from fastinfogan.parity.sides import Setup
from fastinfogan.parity.statistics import EARLY, WINDOWS, Judgement, judge

__all__ = ["EARLY", "WINDOWS", "Judgement", "Report", "Setup", "compare", "judge", "table"]
