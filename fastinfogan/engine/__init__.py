"""Training: one iteration, the loop around it, and the run directory it leaves behind."""

from fastinfogan.engine.config import (
    InitialWeights,
    Precision,
    RunOptions,
    TrainConfig,
    choose_precision,
)
from fastinfogan.engine.execution import choose_execution
from fastinfogan.engine.iteration import Iteration
from fastinfogan.engine.run_directory import RunDirectory, SavedState
from fastinfogan.engine.trainer import Schedule, Trainer

__all__ = [
    "InitialWeights",
    "Iteration",
    "Precision",
    "RunDirectory",
    "RunOptions",
    "SavedState",
    "Schedule",
    "TrainConfig",
    "Trainer",
    "choose_execution",
    "choose_precision",
]
