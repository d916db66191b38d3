"""The paper's five experiments and sprites; where published sources disagree, their variants.

Floor 0: plain data.
"""

from fastinfogan.experiments.tables import BASES, Activation, BlockSpec, Experiment
from fastinfogan.experiments.variants import OURS, VARIANTS, Variant, get, to_train

__all__ = [
    "BASES",
    "OURS",
    "VARIANTS",
    "Activation",
    "BlockSpec",
    "Experiment",
    "Variant",
    "get",
    "to_train",
]
