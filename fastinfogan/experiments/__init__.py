"""The paper's five experiments and sprites; where published sources disagree, their variants."""

from fastinfogan.experiments.spec import Activation, BlockSpec, Entry, Experiment, Variant
from fastinfogan.experiments.tables import EXPERIMENTS, get, to_train

__all__ = [
    "EXPERIMENTS",
    "Activation",
    "BlockSpec",
    "Entry",
    "Experiment",
    "Variant",
    "get",
    "to_train",
]
