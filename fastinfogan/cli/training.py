"""What `train` and `figure1` share: starting a run, and training it with a progress bar."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from fastinfogan.cli.report import print_evaluation
from fastinfogan.data import Source, open_source
from fastinfogan.data.augment import Augmentation
from fastinfogan.engine import (
    RunDirectory,
    Schedule,
    Trained,
    Trainer,
    TrainingSettings,
    choose_precision,
)
from fastinfogan.engine.environment import choose_device
from fastinfogan.engine.precision import PrecisionName
from fastinfogan.engine.settings import Information
from fastinfogan.errors import InputError
from fastinfogan.evaluation import evaluate
from fastinfogan.experiments import Experiment
from fastinfogan.figures import draw_all

_INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}


def new_run(
    experiment: Experiment,
    *,
    out: Path | None,
    data: Path | None,
    seed: int,
    precision: PrecisionName,
    augment: Augmentation | None,
    information: Information,
    device: Literal["auto", "cpu", "cuda"],
    log_every: int,
) -> tuple[RunDirectory, Source]:
    """Read the images, settle what is left open, and make the run's folder, in that order.

    Raises:
        InputError: any of it is wrong; no folder is left behind.
    """
    chosen, _ = choose_precision(precision, choose_device(device))
    settings = TrainingSettings(
        seed=seed,
        batch_size=experiment.batch_size,
        precision=chosen.name,
        augmentation=augment or ("none" if data else "affine"),
        information=information,
        data=str(data.absolute()) if data else None,
        data_fingerprint="",
        log_every=log_every,
    )
    source = open_source(data, experiment)
    settings = replace(settings, data_fingerprint=source.fingerprint)
    return RunDirectory.create(out or _free_name(experiment.name), experiment, settings), source


def images_of(run: RunDirectory, data: Path | None = None) -> Source:
    """The images a run was started with, from where they were or from where they are now."""
    recorded = run.settings.data
    return open_source(data or (Path(recorded) if recorded else None), run.experiment)


def train_with_progress(trainer: Trainer, source: Source, goal: int, schedule: Schedule) -> int:
    """Train to the goal, showing how it goes; then evaluate and draw.

    SIGINT and SIGTERM end the run at the next iteration boundary, with a checkpoint.

    Returns:
        The exit code.
    """
    console = Console(highlight=False)
    run = trainer.run
    console.print(
        f"[bold]{run.experiment.name}[/bold] in {run.path}: iterations {trainer.done} to {goal}, "
        f"batch {run.settings.batch_size}, {run.settings.precision} on {trainer.iteration.device}, "
        f"{len(source.images)} images"
    )

    def draw() -> None:
        with Trained.borrowed(run.experiment, trainer.networks, trainer.done) as trained:
            draw_all(trained, run.pictures)

    with _progress(console, trainer, goal) as show, _stop_on_signal() as signals:
        trainer.train(
            goal,
            replace(
                schedule,
                on_metrics=show,
                on_pictures=draw,
                on_warning=lambda text: console.print(f"[yellow]{text}[/yellow]"),
                stop=lambda: bool(signals),
            ),
        )
    if signals:
        console.print(
            f"stopped after {trainer.done} of {goal} iterations; "
            f"go on with: fastinfogan train --resume {run.path} --iterations {goal}"
        )
        return _INTERRUPTED[signals[0]]
    with Trained.borrowed(run.experiment, trainer.networks, trainer.done) as trained:
        print_evaluation(console, evaluate(trained, source))
    console.print(f"pictures     {run.pictures}")
    for file in sorted(run.pictures.glob("*.png")):
        console.print(f"             {file.name}")
    return 0


@contextmanager
def _progress(console: Console, trainer: Trainer, goal: int) -> Iterator["_Show"]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=not console.is_terminal,
    )
    with bar:
        yield _Show(console, bar, trainer.done, goal)


class _Show:
    """Puts metrics into the bar; on a terminal that cannot show one, prints a line now and then."""

    def __init__(self, console: Console, bar: Progress, done: int, goal: int) -> None:
        self._console, self._bar, self._goal = console, bar, goal
        self._task = bar.add_task("starting", total=goal, completed=done)
        self._next = done

    def __call__(self, line: dict[str, float]) -> None:
        done = int(line["iteration"])
        text = (
            f"D {line['d_loss']:.2f}  G {line['g_loss']:.2f}  MI {line['mi_bound']:.2f} nats  "
            f"{line['images_per_second']:,.0f} images/s"
        )
        self._bar.update(self._task, completed=done, description=text)
        if not self._console.is_terminal and (done >= self._next or done == self._goal):
            self._console.print(f"iteration {done:6d}  {text}")
            self._next = done + max(self._goal // 10, 1)


@contextmanager
def _stop_on_signal() -> Iterator[list[signal.Signals]]:
    """Collects the first SIGINT or SIGTERM; a second one ends the process at once."""
    received: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        for each, handler in before.items():
            signal.signal(each, handler if each != signal.SIGINT else signal.SIG_DFL)

    before = {each: signal.signal(each, note) for each in _INTERRUPTED}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _free_name(experiment: str) -> Path:
    for number in range(1, 100_000):
        path = Path("runs") / f"{experiment}-{number:03d}"
        if not path.exists():
            return path
    raise InputError("runs/ is full of runs; name a folder with --out")
