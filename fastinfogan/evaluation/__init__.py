"""What a finished run has learned: the bound, codes as classifiers, the factors they follow."""

from fastinfogan.evaluation.classification import CodeAsClassifier, classify
from fastinfogan.evaluation.factors import FactorScores, follow_factors
from fastinfogan.evaluation.information import fresh_information
from fastinfogan.evaluation.summary import Evaluation, evaluate

__all__ = [
    "CodeAsClassifier",
    "Evaluation",
    "FactorScores",
    "classify",
    "evaluate",
    "follow_factors",
    "fresh_information",
]
