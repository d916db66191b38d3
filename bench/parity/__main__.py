"""`python -m bench.parity`: whether the engine trains as the reference does."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastinfogan import experiments
from fastinfogan.cli import run
from fastinfogan.errors import InputError

if TYPE_CHECKING:
    from bench.parity.statistics import Analysis

_MAX_SEEDS = 100


@dataclass(frozen=True)
class Parity:
    """Train the engine and plain PyTorch on the same numbers and test for differences.

    Each seed is trained by both on the same images, codes and noise. Trajectories are written as
    they are finished: the same command with the same --out resumes where it stopped. Exit code 1 if
    a difference is detected.
    """

    experiment: str = "mnist"
    """One of mnist, svhn, celeba, faces, chairs, sprites."""
    iterations: int = 1000
    """Of each trajectory."""
    seeds: int = 5
    """How many, from 1 on."""
    batch_size: int = 128
    """Real and generated images in a step."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """The engine's; plain PyTorch computes in fp32."""
    data: Path | None = None
    """As for train, a set that holds images (default: embedded digits, or rendered)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where both are trained."""
    execution: Literal["auto", "eager", "compiled", "graph"] = "auto"
    """Execution mode of the engine's iterations, as for train."""
    out: Path | None = None
    """Folder for trajectories, parity.json and parity.png (default: a new one in runs/)."""
    reanalyse: bool = False
    """Analyse the trajectories in --out anew and train nothing."""
    json: bool = False
    """Print parity.json instead of a table."""

    def run(self) -> int:
        import json

        from bench.parity.report import reanalyse, table
        from bench.parity.trajectories import PICTURE

        out = self.out
        if self.reanalyse:
            if out is None:
                raise InputError("--reanalyse needs --out")
            analysis, document = reanalyse(out)
        else:
            out, analysis, document = self._train()
        if self.json:
            print(json.dumps(document, indent=1))
        else:
            print("\n".join(table(analysis, len(document["settings"]["seeds"]))))
            print(out / PICTURE)
        return 1 if analysis.differences else 0

    def _train(self) -> "tuple[Path, Analysis, dict[str, Any]]":
        from bench.parity.configs import Setup
        from bench.parity.report import compare
        from bench.parity.statistics import EARLY, LEAST_SEEDS, WINDOWS
        from fastinfogan.cli.progress import RENDERING, ProgressBar
        from fastinfogan.data import ImageSet, open_image_set
        from fastinfogan.engine import choose_precision
        from fastinfogan.engine.config import MAX_ITERATIONS, choose_device
        from fastinfogan.engine.session import free_path
        from fastinfogan.errors import reporting_out_of_memory

        if not LEAST_SEEDS <= self.seeds <= _MAX_SEEDS:
            raise InputError(f"--seeds must be {LEAST_SEEDS} to {_MAX_SEEDS}, not {self.seeds}")
        if not WINDOWS <= self.iterations <= MAX_ITERATIONS:
            raise InputError(
                f"--iterations must be {WINDOWS} to {MAX_ITERATIONS:,}, not {self.iterations}"
            )
        device = choose_device(self.device)
        experiment = experiments.get(self.experiment, experiments.to_train(self.experiment))
        experiment = replace(experiment, batch_size=self.batch_size)
        with ProgressBar(RENDERING) as progress:
            source = open_image_set(self.data, experiment, progress)
        if not isinstance(source, ImageSet):
            raise InputError(
                f"{self.data}: pictures that are yet to be decoded; bench parity takes a set that "
                "holds images, such as an .npz or MNIST's IDX files"
            )
        setup = Setup(
            experiment,
            source,
            self.iterations,
            min(EARLY, self.iterations),
            choose_precision(self.precision, device)[0],
            device,
            self.execution,
        )
        out = self.out or free_path("parity")
        try:
            with (
                ProgressBar("training") as bar,
                reporting_out_of_memory("give a smaller --batch-size"),
            ):
                return out, *compare(out, setup, self.seeds, bar)
        except KeyboardInterrupt:
            print(f"fastinfogan: finished trajectories are in {out}; --out {out} resumes",
                  file=sys.stderr)  # fmt: skip
            raise


def main(arguments: Sequence[str]) -> int:
    return run(Parity, "python -m bench.parity", None, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
