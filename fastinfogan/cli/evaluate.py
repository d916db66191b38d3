"""`fastinfogan evaluate`: what a run has learned, and how it is printed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fastinfogan.cli.train import optional

if TYPE_CHECKING:
    from rich.console import Console

    from fastinfogan.data import ImageSet
    from fastinfogan.data.decoders.base import Decoder
    from fastinfogan.evaluation import Disentanglement, Evaluation

_MEASURES = {
    "spearman": "|rank correlation|",
    "circular": "correlation with the angle",
    "nmi": "normalised information",
}


@dataclass(frozen=True)
class Evaluate:
    """Measure the MI bound on fresh codes; score codes by labels and factors."""

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    data: Annotated[Path | None, optional("PATH", "those the run was trained on")] = None
    """Images with labels or factors."""
    seed: int = 0
    """Seed of the fresh codes."""
    json: bool = False
    """Print one JSON object."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def run(self) -> int:
        """Run the command; the exit code."""
        import sys
        from functools import partial

        from rich.console import Console

        from fastinfogan.cli.progress import RENDERING, ProgressBar
        from fastinfogan.engine import RunDirectory
        from fastinfogan.engine.config import choose_device
        from fastinfogan.engine.session import annotated_images, images_of, name_of
        from fastinfogan.errors import InputError, reporting_out_of_memory
        from fastinfogan.evaluation import evaluate
        from fastinfogan.model import Model

        run = RunDirectory.open(self.run_directory)
        model = Model.load(self.run_directory, choose_device(self.device))
        source: ImageSet | Decoder | str
        try:
            with ProgressBar(RENDERING) as progress:
                source = images_of(run, data=self.data, progress=progress)
        except InputError as error:
            if self.data:
                raise
            source = str(error)  # the bound needs no images
        else:
            if not self.data and source.fingerprint != run.config.data_fingerprint:
                source = (
                    f"{name_of(source)}: not the images of the run any more; give others by --data"
                )
        with reporting_out_of_memory("evaluate on fewer images"):
            known = source
            if not isinstance(known, str):
                known = annotated_images(known, run.options, partial(print, file=sys.stderr))
            found = evaluate(model, known, self.seed)
        if self.json:
            print(json.dumps(found.to_dict(), indent=1, allow_nan=False))
        else:
            print_evaluation(Console(highlight=False), found)
        return 0


def print_evaluation(console: "Console", found: "Evaluation") -> None:
    """Print an evaluation, a line per result."""
    whole = sum(found.information.values())
    console.print(
        f"MI bound     {whole:.3f} nats on fresh codes, after {found.iteration} iterations"
    )
    for name, bound in found.information.items():
        limit = f" of {found.entropy[name]:.3f}" if name in found.classification else ""
        console.print(f"             {name}: {bound:.3f}{limit}")
    for name, code in found.classification.items():
        console.print(
            f"error        {name} as a classifier, no labels used in training: "
            f"{code.matching_error:.1%} by matching, {code.majority_error:.1%} by majority "
            f"(fitted on {code.fitted_on}, scored on {code.scored_on} other images)"
        )
    if found.factors:
        _print_factors(console, found.factors)
    if found.unscored:
        console.print(f"factors      not scored: {found.unscored}", soft_wrap=True, markup=False)
    if found.unclassified:
        console.print(f"error        not measured: {found.unclassified}", soft_wrap=True)


def _print_factors(console: "Console", found: "Disentanglement") -> None:
    """Print the most informative code of each factor, and its scores."""
    gap = "" if found.mig is None else f"MIG {found.mig:.3f}, "
    images = "held-out images" if found.held_out else "images of the training set"
    console.print(f"factors      {gap}on {found.images} {images}")
    for name, each in found.factors.items():
        console.print(
            f"             {name}: {each.code}, {_MEASURES[each.measure]} {each.score:.3f}, "
            f"{each.information:.3f} of {each.entropy:.3f} nats"
        )
