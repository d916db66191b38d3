"""`python -m bench.parity`: whether the engine trains as the reference does."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fastinfogan import experiments
from fastinfogan.cli import run
from fastinfogan.errors import InputError

_PLAIN_EVERY = 30.0  # seconds between lines where there is no terminal
_MAX_SEEDS = 100


@dataclass(frozen=True)
class Parity:
    """Train the engine and plain PyTorch side by side and tell whether their trajectories agree.

    Each seed is trained by both on the same images, codes and noise. Trajectories are kept in the
    folder as they are finished: the same command with the same --out goes on where it was stopped,
    and given to several processes at once it shares the work. Exit code 1 if they differ.
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
    """Who drives the engine's iterations, as for train."""
    out: Path | None = None
    """Folder for trajectories, parity.json and parity.png (default: a new one in runs/)."""
    json: bool = False
    """Print parity.json instead of a table."""

    def run(self) -> int:
        """Do it; the exit code."""
        import json

        from bench.parity import EARLY, LEAST_SEEDS, WINDOWS, Setup, compare, table
        from fastinfogan.cli.rendering import Rendering
        from fastinfogan.cli.training import free_name
        from fastinfogan.data import ImageSet, open_image_set
        from fastinfogan.engine import choose_precision
        from fastinfogan.engine.config import MAX_ITERATIONS
        from fastinfogan.engine.environment import choose_device
        from fastinfogan.memory import reporting_out_of_memory

        if not LEAST_SEEDS <= self.seeds <= _MAX_SEEDS:
            raise InputError(
                f"--seeds must be {LEAST_SEEDS} to {_MAX_SEEDS}, not {self.seeds}: "
                "fewer do not tell what is chance"
            )
        if not WINDOWS <= self.iterations <= MAX_ITERATIONS:
            raise InputError(
                f"--iterations must be {WINDOWS} to {MAX_ITERATIONS:,}, not {self.iterations}"
            )
        device = choose_device(self.device)
        precision, _ = choose_precision(self.precision, device)
        name = self.experiment
        experiment = experiments.get(name, experiments.to_train(name))
        experiment = replace(experiment, batch_size=self.batch_size)
        with Rendering() as progress:
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
            precision,
            device,
            self.execution,
        )
        out = self.out or free_name("parity")
        whole = self.seeds * sum(map(setup.length, setup.sides))
        try:
            with _progress(whole) as told, reporting_out_of_memory("give a smaller --batch-size"):
                found = compare(out, setup, self.seeds, told)
        except KeyboardInterrupt:
            print(f"fastinfogan: what was finished is kept; --out {out} goes on", file=sys.stderr)
            raise
        if self.json:
            print(json.dumps(found.document, indent=1))
        else:
            print("\n".join(table(found.judgement, self.seeds)))
            print(found.picture)
        return 1 if found.judgement.reasons else 0


@contextmanager
def _progress(whole: int) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, a line now and then elsewhere; on stderr, as --json has stdout."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=whole)
    done: dict[tuple[str, int], int] = {}
    last = time.monotonic()

    def told(side: str, seed: int, iterations: int) -> None:
        nonlocal last
        done[side, seed] = iterations
        text = f"{side}, seed {seed}"
        bar.update(task, completed=sum(done.values()), description=text)
        now = time.monotonic()
        if not console.is_terminal and now - last > _PLAIN_EVERY:
            last = now
            console.print(
                f"{text}: iteration {iterations:,}; {sum(done.values()):,} of {whole:,} in all"
            )

    with bar:
        yield told


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return run(Parity, "python -m bench.parity", None, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
