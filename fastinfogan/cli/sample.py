"""`fastinfogan sample`: images from the prior."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastinfogan.cli.train import optional


@dataclass(frozen=True)
class Sample:
    """Draw images from the prior of a run's newest checkpoint."""

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    count: int = 100
    """Number of images."""
    seed: int = 0
    """Seed of noise and codes."""
    out: Annotated[Path | None, optional("PATH", "RUN/pictures/samples.png")] = None
    """The PNG to write; the default's name holds the options."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to generate."""

    def run(self) -> int:
        """Run the command; the exit code."""
        from fastinfogan.engine.config import choose_device
        from fastinfogan.errors import reporting_out_of_memory
        from fastinfogan.figures import draw_samples, samples_name
        from fastinfogan.model import Model

        model = Model.load(self.run_directory, choose_device(self.device))
        default = self.run_directory / "pictures" / samples_name(self.count, self.seed)
        with reporting_out_of_memory("take a smaller --count"):
            print(draw_samples(model, self.out or default, self.count, self.seed))
        return 0
