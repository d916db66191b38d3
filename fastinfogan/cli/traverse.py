"""`fastinfogan traverse`: images in which one code varies from left to right."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastinfogan.cli.train import optional


@dataclass(frozen=True)
class Traverse:
    """Draw the paper's Figure 2 for one code of a run, or for each."""

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    code: Annotated[str | None, optional("CODE", "one picture for each code")] = None
    """c1, c2, ..."""
    low: Annotated[float | None, optional("FLOAT", "the paper's", "from")] = None
    """The value of a continuous code at the left."""
    high: Annotated[float | None, optional("FLOAT", "the paper's", "to")] = None
    """The value at the right."""
    rows: int = 10
    """Rows, which differ in noise and in the other codes."""
    steps: int = 11
    """Columns, for a continuous code."""
    seed: int = 0
    """Seed of noise and codes."""
    out: Annotated[Path | None, optional("PATH", "RUN/pictures")] = None
    """Folder for the PNGs, whose names hold the options."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to generate."""

    def run(self) -> int:
        """Run the command; the exit code."""
        from fastinfogan.engine.config import choose_device
        from fastinfogan.errors import InputError, reporting_out_of_memory
        from fastinfogan.figures import draw_traversal, traversal_name
        from fastinfogan.model import Model

        if self.code is None and (self.low is not None or self.high is not None):
            raise InputError("--from and --to are a continuous code's range; name it with --code")
        model = Model.load(self.run_directory, choose_device(self.device))
        folder = self.out or self.run_directory / "pictures"
        for code in (self.code,) if self.code else model.experiment.latents.names:
            options: dict[str, Any] = {
                "rows": self.rows,
                "steps": self.steps,
                "low": self.low,
                "high": self.high,
                "seed": self.seed,
            }
            file = folder / traversal_name(model, code, **options)
            with reporting_out_of_memory("take fewer --rows or --steps"):
                print(draw_traversal(model, code, file, **options))
        return 0
