"""Evaluation of a trained model: the MI bound, codes as classifiers, disentanglement."""

from fastinfogan.evaluation.classification import CodeAsClassifier, classify
from fastinfogan.evaluation.disentanglement import Disentanglement, measure_disentanglement
from fastinfogan.evaluation.summary import Evaluation, evaluate, fresh_information

__all__ = [
    "CodeAsClassifier",
    "Disentanglement",
    "Evaluation",
    "classify",
    "evaluate",
    "fresh_information",
    "measure_disentanglement",
]
