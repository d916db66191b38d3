"""Everything `fastinfogan evaluate` tells about a run."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fastinfogan.data import Source
from fastinfogan.engine import Trained
from fastinfogan.evaluation.classification import CodeAsClassifier, classify
from fastinfogan.evaluation.information import fresh_information


@dataclass(frozen=True)
class Evaluation:
    """What a run has learned.

    Attributes:
        experiment: its name.
        iteration: how many iterations the networks have seen.
        information: L_I of each code in nats, by name, on fresh codes.
        entropy: H(c) of each code in nats, what a categorical code's L_I cannot exceed.
        classification: categorical codes as classifiers, by name; empty without labels.
    """

    experiment: str
    iteration: int
    information: dict[str, float]
    entropy: dict[str, float]
    classification: dict[str, CodeAsClassifier]

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the whole bound, as JSON can hold them."""
        return {"mi_bound": sum(self.information.values()), **dataclasses.asdict(self)}


def evaluate(trained: Trained, source: Source, seed: int = 0) -> Evaluation:
    """Measure a run.

    Args:
        trained: its networks.
        source: images, whose labels if any the codes are matched with.
        seed: of the fresh codes.
    """
    spec = trained.experiment.latents
    return Evaluation(
        trained.experiment.name,
        trained.iteration,
        fresh_information(trained, seed=seed),
        dict(zip(spec.names, spec.entropies, strict=True)),
        classify(trained, source),
    )
