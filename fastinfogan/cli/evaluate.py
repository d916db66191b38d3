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
        from functools import partial

        from rich.console import Console

        from fastinfogan.cli.progress import RENDERING, ProgressBar
        from fastinfogan.cli.report import print_evaluation
        from fastinfogan.engine import RunDirectory
        from fastinfogan.engine.config import choose_device
        from fastinfogan.engine.session import annotated_images, images_of, name_of
        from fastinfogan.errors import InputError, reporting_out_of_memory
        from fastinfogan.evaluation import evaluate
        from fastinfogan.model import Model

        run = RunDirectory.open(self.run_directory)
        trained = Model.load(self.run_directory, choose_device(self.device))
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
                    f"{name_of(source)}: not the images of the run any more; name others by --data"
                )
        with reporting_out_of_memory("evaluate on fewer images"):
            known = source
            if not isinstance(known, str):
                known = annotated_images(known, run.options, partial(print, file=sys.stderr))
            found = evaluate(trained, known, self.seed)
        if self.json:
            print(json.dumps(found.to_dict(), indent=1, allow_nan=False))
        else:
            print_evaluation(Console(highlight=False), found)
        return 0
