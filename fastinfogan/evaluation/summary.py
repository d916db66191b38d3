"""The evaluation of a model: what `fastinfogan evaluate` prints."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from fastinfogan.data import ImageSet
from fastinfogan.errors import MissingPackageError
from fastinfogan.evaluation.classification import CodeAsClassifier, classify, why_unclassified
from fastinfogan.evaluation.disentanglement import Disentanglement, measure_disentanglement
from fastinfogan.model import Model
from fastinfogan.objective import information_bounds
from fastinfogan_kernels.inputs.draw import draw_codes
from fastinfogan_kernels.philox import Stream


@dataclass(frozen=True)
class Evaluation:
    """What a model has learned.

    Attributes:
        experiment: its name.
        iteration: iterations trained.
        information: L_I of each code in nats, by name, on fresh codes.
        entropy: H(c) of each code in nats, the upper bound of a categorical code's L_I.
        classification: categorical codes as classifiers, by name; empty without labels.
        unclassified: why it is empty, or None.
        factors: which code represents which known factor; None where none are known.
        unscored: why known factors were not scored, or None.
    """

    experiment: str
    iteration: int
    information: dict[str, float]
    entropy: dict[str, float]
    classification: dict[str, CodeAsClassifier]
    unclassified: str | None = None
    factors: Disentanglement | None = None
    unscored: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the sum of the bounds for JSON; None for what is not finite."""
        whole = {"mi_bound": sum(self.information.values()), **dataclasses.asdict(self)}
        finite: dict[str, Any] = _finite(whole)
        return finite


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(model: Model, source: ImageSet | str, seed: int = 0) -> Evaluation:
    """Evaluate a model.

    Args:
        model: the networks.
        source: images, with labels and factors if they are known; or why there are none.
        seed: of the fresh codes.
    """
    spec = model.experiment.latents
    scores: dict[str, CodeAsClassifier] = {}
    factors = unscored = None
    if isinstance(source, ImageSet):
        scores, reason = classify(model, source), why_unclassified(model, source)
        try:
            factors = measure_disentanglement(model, source)
        except MissingPackageError as error:
            unscored = str(error)
    else:
        reason = source
    return Evaluation(
        model.experiment.name,
        model.iteration,
        fresh_information(model, seed=seed),
        dict(zip(spec.names, spec.entropies, strict=True)),
        scores,
        reason,
        factors,
        unscored,
    )


@torch.no_grad()
def fresh_information(model: Model, rows: int = 4096, seed: int = 0) -> dict[str, float]:
    """Return L_I of each code, in nats by name, on images generated from fresh codes.

    Args:
        model: the networks.
        rows: images to generate.
        seed: of the codes.
    """
    spec = model.experiment.latents
    codes = draw_codes(spec, seed, 0, Stream.EVALUATION, rows, device=model.device)
    output = model.read_generated(codes)
    bounds = information_bounds(output, codes.classes, codes.continuous, spec)
    return dict(zip(spec.names, bounds.tolist(), strict=True))
