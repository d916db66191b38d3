"""Training: one iteration, the loop around it, and the run directory it leaves behind."""

from fastinfogan.engine.iteration import Iteration
from fastinfogan.engine.precision import Precision, choose_precision
from fastinfogan.engine.run_directory import RunDirectory, SavedState
from fastinfogan.engine.runners import choose_runner
from fastinfogan.engine.settings import Origin, Plan, TrainingSettings
from fastinfogan.engine.trained import Trained
from fastinfogan.engine.trainer import Schedule, Trainer

__all__ = [
    "Iteration",
    "Origin",
    "Plan",
    "Precision",
    "RunDirectory",
    "SavedState",
    "Schedule",
    "Trained",
    "Trainer",
    "TrainingSettings",
    "choose_precision",
    "choose_runner",
]
