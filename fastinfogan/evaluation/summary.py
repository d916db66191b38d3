"""Everything `fastinfogan evaluate` tells about a run."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fastinfogan.data import ImageSet
from fastinfogan.evaluation.classification import CodeAsClassifier, classify, why_not
from fastinfogan.evaluation.factors import FactorScores, follow_factors
from fastinfogan.evaluation.information import fresh_information
from fastinfogan.model import Model
from fastinfogan.optional import MissingPackageError


@dataclass(frozen=True)
class Evaluation:
    """What a run has learned.

    Attributes:
        experiment: its name.
        iteration: how many iterations the networks have seen.
        information: L_I of each code in nats, by name, on fresh codes.
        entropy: H(c) of each code in nats, what a categorical code's L_I cannot exceed.
        classification: categorical codes as classifiers, by name; empty without labels.
        unclassified: why it is empty, or None.
        factors: how codes follow the images' factors; None where none are known.
        unscored: why known factors were not scored, or None.
    """

    experiment: str
    iteration: int
    information: dict[str, float]
    entropy: dict[str, float]
    classification: dict[str, CodeAsClassifier]
    unclassified: str | None = None
    factors: FactorScores | None = None
    unscored: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the whole bound, as JSON can hold them: None for what is not finite."""
        whole = {"mi_bound": sum(self.information.values()), **dataclasses.asdict(self)}
        finite: dict[str, Any] = _finite(whole)
        return finite


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(trained: Model, source: ImageSet | str, seed: int = 0) -> Evaluation:
    """Measure a run.

    Args:
        trained: its networks.
        source: images, whose labels and factors if any the codes are matched with; or why there
            are none.
        seed: of the fresh codes.
    """
    spec = trained.experiment.latents
    scores: dict[str, CodeAsClassifier] = {}
    factors = unscored = None
    if isinstance(source, ImageSet):
        scores, reason = classify(trained, source), why_not(trained, source)
        try:
            factors = follow_factors(trained, source)
        except MissingPackageError as error:
            unscored = str(error)
    else:
        reason = source
    return Evaluation(
        trained.experiment.name,
        trained.iteration,
        fresh_information(trained, seed=seed),
        dict(zip(spec.names, spec.entropies, strict=True)),
        scores,
        reason,
        factors,
        unscored,
    )
