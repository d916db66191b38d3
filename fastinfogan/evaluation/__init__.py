"""What a finished run has learned: the bound on fresh codes, and codes as classifiers."""

from fastinfogan.evaluation.classification import CodeAsClassifier, classify
from fastinfogan.evaluation.information import fresh_information
from fastinfogan.evaluation.summary import Evaluation, evaluate

__all__ = ["CodeAsClassifier", "Evaluation", "classify", "evaluate", "fresh_information"]
