"""Categorical codes as classifiers: each value of a code is assigned a class.

The assignment is fitted on one part of the labelled images and scored on the other (Chen et al.
2016, Section 7.2: "5 % error by matching each category in c1 to a digit type").
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastinfogan.data import ImageSet
from fastinfogan.data.subset import subset_indices
from fastinfogan.model import Model
from fastinfogan_kernels import philox
from fastinfogan_kernels.philox import Stream

Indices = NDArray[np.int64]

_MAX_FITTED = 10_000  # images


@dataclass(frozen=True)
class CodeAsClassifier:
    """The errors of a categorical code as a classifier.

    Attributes:
        matching_error: share of wrong images where no two values have the same class (Hungarian
            matching).
        majority_error: share of wrong images where each value has its most frequent class.
        fitted_on: images on which classes were assigned to values.
        scored_on: other images, on which the errors are measured.
    """

    matching_error: float
    majority_error: float
    fitted_on: int
    scored_on: int


def classify(model: Model, source: ImageSet) -> dict[str, CodeAsClassifier]:
    """Score every categorical code on a labelled set.

    Classes are assigned on at most 10,000 images of the set and scored on its test part; without a
    test part, they are assigned on one random half and scored on the other.

    Returns:
        By the code's name; empty where `why_unclassified` returns a reason.
    """
    if why_unclassified(model, source):
        return {}
    spec = model.experiment.latents
    test, labels = source.test, source.labels
    assert labels is not None
    if test is not None and test.labels is not None:
        chosen = subset_indices(len(labels), _MAX_FITTED)
        fitted, labels = len(chosen), labels[chosen]
        fit = _most_likely(model, source.images[chosen])
        score = _most_likely(model, test.images)
        every_label = np.concatenate([labels, test.labels])
    else:
        values = _most_likely(model, source.images)
        # Step 1 of the stream: step 0 has the codes of `fresh_information`.
        shuffled = philox.permute(
            np.arange(len(values)), len(values), philox.shuffle_keys(0, 1, Stream.EVALUATION)
        )
        fitted = len(values) // 2
        fit, score = values[shuffled[:fitted]], values[shuffled[fitted:]]
        every_label = labels[shuffled]
    names, classes = np.unique(every_label, return_inverse=True)
    scores = {}
    for i, code in enumerate(spec.categorical):
        table = confusion(fit[:, i], classes[:fitted], code.classes, len(names))
        scores[spec.names[i]] = CodeAsClassifier(
            error(match_classes(table), score[:, i], classes[fitted:]),
            error(table.argmax(axis=1), score[:, i], classes[fitted:]),
            len(fit),
            len(score),
        )
    return scores


def why_unclassified(model: Model, source: ImageSet) -> str | None:
    """Return why no code can be scored as a classifier of these images, or None."""
    if not model.experiment.latents.categorical:
        return "the experiment has no categorical code"
    if source.labels is None:
        return f"{source.name}: no labels"
    if len(source.labels) < 2:
        return f"{source.name}: fewer than 2 labelled images"
    return None


def confusion(values: Indices, labels: Indices, value_count: int, class_count: int) -> Indices:
    """Count the pairs of a code's value and a class: int64 (value_count, class_count)."""
    table = np.zeros((value_count, class_count), np.int64)
    np.add.at(table, (values, labels), 1)
    return table


def match_classes(table: Indices) -> Indices:
    """Return the class of each value by the matching with the fewest errors.

    Returns:
        int64 (values,); -1 for a value without a class, where there are fewer classes than values.
    """
    from scipy.optimize import linear_sum_assignment

    assigned = np.full(len(table), -1, np.int64)
    values, classes = linear_sum_assignment(table, maximize=True)
    assigned[values] = classes
    return assigned


def error(assigned: Indices, values: Indices, labels: Indices) -> float:
    """Return the share of images whose label is not the class of their value."""
    return float(np.mean(assigned[values] != labels))


def _most_likely(model: Model, images: NDArray[np.uint8]) -> Indices:
    output = model.read(torch.from_numpy(images))
    spec = model.experiment.latents
    return np.stack(
        [output[:, columns].argmax(dim=1).cpu().numpy() for columns in spec.logit_slices], axis=1
    )
