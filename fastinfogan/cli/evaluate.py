"""`fastinfogan evaluate`: what a run has learned."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from fastinfogan.data import ImageSet
    from fastinfogan.data.decoders.base import Decoder


@dataclass(frozen=True)
class Evaluate:
    """Measure the MI bound on fresh codes, and what codes tell of known labels and factors."""

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    data: Path | None = None
    """Images with labels or factors (default: those the run was trained on)."""
    seed: int = 0
    """Of the fresh codes."""
    json: bool = False
    """Print one JSON object."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def run(self) -> int:
        """Do it; the exit code."""
        import sys

        from rich.console import Console

        from fastinfogan.cli.report import print_evaluation
        from fastinfogan.cli.training import images_of, name_of, to_evaluate
        from fastinfogan.engine import RunDirectory
        from fastinfogan.engine.environment import choose_device
        from fastinfogan.errors import InputError
        from fastinfogan.evaluation import evaluate
        from fastinfogan.memory import reporting_out_of_memory
        from fastinfogan.model import Model

        run = RunDirectory.open(self.run_directory)
        trained = Model.load(self.run_directory, choose_device(self.device))
        source: ImageSet | Decoder | str
        try:
            source = images_of(run, self.data)
        except InputError as error:
            if self.data:
                raise
            source = str(error)  # the bound needs no images
        else:
            if not self.data and source.fingerprint != run.config.data_fingerprint:
                source = (
                    f"{name_of(source)}: not the images of the run any more; name others by --data"
                )
        with reporting_out_of_memory("evaluate on fewer images"):
            known = source
            if not isinstance(known, str):
                known = to_evaluate(known, run.options, lambda told: print(told, file=sys.stderr))
            found = evaluate(trained, known, self.seed)
        if self.json:
            print(json.dumps(found.to_dict(), indent=1, allow_nan=False))
        else:
            print_evaluation(Console(highlight=False), found)
        return 0
