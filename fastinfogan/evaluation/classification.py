"""A categorical code as a classifier: which class does each of its values stand for?

The answer is fitted on one part of the labelled images and scored on the other. ImageSet: Chen et
al. 2016, Section 7.2, "5 % error by matching each category in c1 to a digit type".
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from fastinfogan.data import ImageSet
from fastinfogan.data.subset import subset_indices
from fastinfogan.model import Model
from fastinfogan_kernels import shuffle
from fastinfogan_kernels.philox import Stream

Indices = NDArray[np.int64]

_MAX_FITTED = 10_000  # images of a training part, which are enough to give values their meanings


@dataclass(frozen=True)
class CodeAsClassifier:
    """How well a categorical code tells the classes.

    Attributes:
        matching_error: share of images wrong when each value stands for a class of its own
            (Hungarian matching).
        majority_error: share of images wrong when each value stands for its most frequent class.
        fitted_on: how many images the values' meanings were fitted on.
        scored_on: how many other images the errors are measured on.
    """

    matching_error: float
    majority_error: float
    fitted_on: int
    scored_on: int


def classify(trained: Model, source: ImageSet) -> dict[str, CodeAsClassifier]:
    """Score every categorical code on a labelled set.

    Meanings are fitted on the set, on at most 10,000 of its images, and scored on its test part;
    without a test part, they are fitted on one random half and scored on the other.

    Returns:
        By the code's name; empty where `why_not` has a reason.
    """
    if why_not(trained, source):
        return {}
    spec = trained.experiment.latents
    test, labels = source.test, source.labels
    assert labels is not None
    if test is not None and test.labels is not None:
        chosen = subset_indices(len(labels), _MAX_FITTED)
        fitted, labels = len(chosen), labels[chosen]
        fit = _most_likely(trained, source.images[chosen])
        score = _most_likely(trained, test.images)
        every_label = np.concatenate([labels, test.labels])
    else:
        values = _most_likely(trained, source.images)
        # Step 1 of the stream: step 0 has the codes of `fresh_information`.
        shuffled = shuffle.permute(
            np.arange(len(values)), len(values), shuffle.keys(0, 1, Stream.EVALUATION)
        )
        fitted = len(values) // 2
        fit, score = values[shuffled[:fitted]], values[shuffled[fitted:]]
        every_label = labels[shuffled]
    names, classes = np.unique(every_label, return_inverse=True)
    scores = {}
    for i, code in enumerate(spec.categorical):
        table = confusion(fit[:, i], classes[:fitted], code.classes, len(names))
        scores[spec.names[i]] = CodeAsClassifier(
            error(matched(table), score[:, i], classes[fitted:]),
            error(table.argmax(axis=1), score[:, i], classes[fitted:]),
            len(fit),
            len(score),
        )
    return scores


def why_not(trained: Model, source: ImageSet) -> str | None:
    """Why no code can be scored as a classifier of these images, or None."""
    if not trained.experiment.latents.categorical:
        return "the experiment has no categorical code"
    if source.labels is None:
        return f"{source.name}: no labels"
    if len(source.labels) < 2:
        return f"{source.name}: fewer than 2 labelled images"
    return None


def confusion(values: Indices, labels: Indices, value_count: int, class_count: int) -> Indices:
    """How often each value of a code meets each class: int64 (value_count, class_count)."""
    table = np.zeros((value_count, class_count), np.int64)
    np.add.at(table, (values, labels), 1)
    return table


def matched(table: Indices) -> Indices:
    """The class of each value by the matching that gets most images right.

    Returns:
        int64 (values,); -1 for a value left without a class, as there are fewer classes.
    """
    meaning = np.full(len(table), -1, np.int64)
    values, classes = linear_sum_assignment(table, maximize=True)
    meaning[values] = classes
    return meaning


def error(meaning: Indices, values: Indices, labels: Indices) -> float:
    """Share of images whose code's value means another class than theirs."""
    return float(np.mean(meaning[values] != labels))


def _most_likely(trained: Model, images: NDArray[np.uint8]) -> Indices:
    output = trained.read(torch.from_numpy(images))
    spec = trained.experiment.latents
    return np.stack(
        [output[:, place].argmax(dim=1).cpu().numpy() for place in spec.logit_slices], axis=1
    )
