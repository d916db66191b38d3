"""What `train` and `figure1` share: starting a run, and training it with a progress bar."""

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from fastinfogan.cli.rendering import Rendering
from fastinfogan.cli.report import print_evaluation
from fastinfogan.data import ImageSet, open_image_set
from fastinfogan.data.decoders.base import Decoder, DecoderName
from fastinfogan.data.image_set import EncodedImageSet
from fastinfogan.data.subset import is_annotated, sample
from fastinfogan.distributed import SINGLE_PROCESS, Distributed
from fastinfogan.engine import (
    RunDirectory,
    RunOptions,
    SavedState,
    Schedule,
    TrainConfig,
    Trainer,
    choose_precision,
)
from fastinfogan.engine.config import BatchNorm, Information
from fastinfogan.engine.execution import ExecutionName
from fastinfogan.engine.precision import PrecisionName
from fastinfogan.errors import InputError
from fastinfogan.evaluation import evaluate
from fastinfogan.experiments import Experiment
from fastinfogan.figures import draw_all
from fastinfogan.memory import reporting_out_of_memory
from fastinfogan.model import Model
from fastinfogan_kernels.inputs.real_images import Augmentation

_INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}


def describe_run(
    experiment: Experiment,
    plan: RunOptions,
    *,
    out: Path | None,
    data: Path | None,
    seed: int,
    precision: PrecisionName,
    augment: Augmentation | None,
    information: Information,
    log_every: int,
    batch_norm: BatchNorm = "synchronised",
    distributed: Distributed = SINGLE_PROCESS,
    free: bool = True,
) -> tuple[RunDirectory, ImageSet | Decoder]:
    """Settle what is left open of a run and open its images; nothing is written.

    `free` refuses a folder with something in it, before the images are read.

    Raises:
        InputError: any of it is wrong.
    """
    chosen, _ = choose_precision(precision, torch.device(plan.device))
    settings = TrainConfig(
        seed=seed,
        batch_size=experiment.batch_size,
        precision=chosen.name,
        augmentation=augment or ("none" if data or experiment.name != "mnist" else "affine"),
        information=information,
        data=str(data.absolute()) if data else None,
        data_fingerprint={},
        log_every=log_every,
        batch_norm=batch_norm,
        ranks=distributed.world_size,
    )
    distributed.rows(settings.batch_size)
    path = out or free_name(experiment.name)
    if free and distributed.is_main:
        RunDirectory(path, experiment, settings, plan).require_free()
    with distributed.main_first():
        source = opened(data, experiment, plan)
    settings = replace(settings, data_fingerprint=source.fingerprint)
    return RunDirectory(path, experiment, settings, plan), source


def start(
    run: RunDirectory,
    source: ImageSet | Decoder,
    weights: SavedState | None = None,
    execution: ExecutionName = "auto",
    distributed: Distributed = SINGLE_PROCESS,
) -> Trainer:
    """Set a new run up, then make its folder; with weights, they are its first checkpoint.

    Of several ranks rank 0 makes the folder.

    Raises:
        InputError: the weights do not fit, or it all does not fit into memory; no folder was made.
        OSError: the first checkpoint could not be written; no folder is left.
    """
    with reporting_out_of_memory("train on fewer images"):
        trainer = _trainer(run, source, run.options, execution, distributed)
    if weights:
        trainer.take_weights(weights)
    if distributed.is_main:
        run.make()
    if weights:
        try:
            trainer.save()
        except OSError:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
    return trainer


def go_on(
    run: RunDirectory,
    plan: RunOptions,
    data: Path | None = None,
    execution: ExecutionName = "auto",
    distributed: Distributed = SINGLE_PROCESS,
) -> tuple[Trainer, ImageSet | Decoder]:
    """Take a run up where its newest checkpoint is, or from its seed if it came to none.

    Args:
        run: which.
        plan: what is asked of it from now on; recorded.
        data: where its images are now, if elsewhere; recorded.
        execution: who drives its iterations.
        distributed: the processes that train it; with per-rank batch norm as many as before.

    Raises:
        InputError: it cannot go on, or not to that iteration; nothing was changed.
    """
    if run.config.batch_norm == "per-rank" and run.config.ranks != distributed.world_size:
        raise InputError(
            f"{run.path} was started with {run.config.ranks} ranks, each with batch-norm "
            f"statistics of its own; it cannot go on with {distributed.world_size}"
        )
    run.config = replace(run.config, ranks=distributed.world_size)
    saved = None
    if run.has_checkpoint():
        saved = run.read_checkpoint()
    elif run.options.init_from:
        raise InputError(
            f"{run.path}: was to start from the weights of {run.options.init_from.run} and "
            "holds no checkpoint; start it again"
        )
    done = saved.iteration if saved else 0
    if plan.iterations < done:
        raise InputError(
            f"{run.path} has done {done} iterations; --iterations {plan.iterations} is less"
        )
    with distributed.main_first():
        source = images_of(run, data, plan)
    with reporting_out_of_memory("this run was started on a larger machine"):
        trainer = _trainer(run, source, plan, execution, distributed)
    if saved:
        trainer.resume(saved)
    distributed.barrier()  # config.json is written when everybody has read it
    if distributed.is_main:
        settings = run.config
        run.update(replace(settings, data=str(data.absolute())) if data else settings, plan)
    return trainer, source


def _trainer(
    run: RunDirectory,
    source: ImageSet | Decoder,
    plan: RunOptions,
    execution: ExecutionName,
    distributed: Distributed,
) -> Trainer:
    device = torch.device(plan.device)
    return Trainer(run, source, device, execution, distributed, plan.cache, plan.on_bad_image)


def opened(data: Path | None, experiment: Experiment, plan: RunOptions) -> ImageSet | Decoder:
    """A set's images, or the set and who decodes it, as a run's plan says.

    Raises:
        InputError: they cannot be read or do not fit, or the plan asks of images in memory what is
            of pictures in files.
    """
    with Rendering() as progress:
        source = open_image_set(data, experiment, progress, plan.on_bad_image)
    if isinstance(source, EncodedImageSet):
        return decoder_of(source, plan.decoder, plan.device)
    for option, asked, default in (
        ("decoder", plan.decoder, "auto"),
        ("on-bad-image", plan.on_bad_image, "fail"),
    ):
        if asked != default:
            raise InputError(
                f"--{option} {asked}: {source.name} holds images that are decoded already; "
                "it is for pictures in files of their own"
            )
    return source


def decoder_of(source: EncodedImageSet, name: DecoderName, device: str) -> Decoder:
    """Who decodes a set.

    Raises:
        InputError: who was asked for does not work here.
    """
    from fastinfogan.data.decoders.choose import choose_decoder

    return choose_decoder(name, source, device, 128)[0]


def name_of(source: ImageSet | Decoder) -> str:
    """What the user calls a set."""
    return source.name if isinstance(source, ImageSet) else source.source.name


def images_of(
    run: RunDirectory, data: Path | None = None, plan: RunOptions | None = None
) -> ImageSet | Decoder:
    """The images a run was started with, from where they were or from where they are now."""
    recorded = run.config.data
    path = data or (Path(recorded) if recorded else None)
    return opened(path, run.experiment, plan or run.options)


def to_evaluate(
    source: ImageSet | Decoder, plan: RunOptions, tell: Callable[[str], object]
) -> ImageSet | str:
    """Images with what is known of them, in memory; or why there are none."""
    if isinstance(source, ImageSet):
        return source
    if not is_annotated(source.source):
        return f"{source.source.name}: no labels"
    return sample(source, lambda test: decoder_of(test, plan.decoder, plan.device), tell)


def train_with_progress(
    trainer: Trainer, source: ImageSet | Decoder, *, new: bool, go_on_with: str | None = None
) -> int:
    """Train as the run's plan says, showing how it goes; then evaluate and draw.

    SIGINT and SIGTERM end the run at the next iteration boundary, with a checkpoint; SIGUSR1 has a
    checkpoint written there, and the run goes on.

    Args:
        trainer: at its first or at a later iteration.
        source: its images.
        new: whether the run's folder was made just now; it goes if not one iteration fits.
        go_on_with: the command that goes on with a run that was stopped.

    Returns:
        The exit code.
    """
    console = Console(highlight=False, quiet=not trainer.distributed.is_main)
    run = trainer.run
    goal = run.options.iterations
    console.print(
        f"[bold]{run.experiment.name}[/bold] in {run.path}: iterations {trainer.done} to {goal}, "
        f"batch {run.config.batch_size}, {run.config.precision} on {trainer.iteration.device}, "
        f"{len(source if isinstance(source, ImageSet) else source.source)} images"
    )
    console.print(f"images {trainer.feed.path}", soft_wrap=True)

    def draw() -> None:
        with Model.borrowed(run.experiment, trainer.networks, trainer.done) as trained:
            draw_all(trained, run.pictures)

    with (
        _progress(console, trainer, goal) as show,
        _stop_on_signal() as signals,
        _save_on_signal() as save_now,
    ):
        schedule = Schedule(
            checkpoint_every=run.options.checkpoint_every,
            pictures_every=run.options.pictures_every,
            on_metrics=show,
            on_pictures=draw,
            on_warning=lambda text: console.print(f"[yellow]{escape(text)}[/yellow]"),
            stop=lambda: bool(signals),
            save_now=save_now,
        )
        try:
            with reporting_out_of_memory("take a smaller --batch-size"):
                trainer.train(goal, schedule)
        except InputError:
            if new and trainer.done == 0 and trainer.distributed.is_main:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
        # A signal may have come to one rank alone; all have stopped.
        came = trainer.distributed.any_process(*(each in signals for each in _INTERRUPTED))
        signals += [each for each, seen in zip(_INTERRUPTED, came, strict=True) if seen]
    if signals:
        command = go_on_with or f"fastinfogan train --resume {run.path} --iterations {goal}"
        console.print(
            f"stopped after {trainer.done} of {goal} iterations; go on with: {command}",
            soft_wrap=True,
        )
        return _INTERRUPTED[signals[0]]
    if not trainer.distributed.is_main:
        return 0
    with Model.borrowed(run.experiment, trainer.networks, trainer.done) as trained:
        known = to_evaluate(source, run.options, lambda told: console.print(escape(told)))
        print_evaluation(console, evaluate(trained, known))
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
        if "seconds_to_first_iteration" in line:
            seconds = line["seconds_to_first_iteration"]
            self._console.print(f"first iteration done {seconds:.1f} s after the start of training")
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


@contextmanager
def _save_on_signal() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether SIGUSR1 came since it was last asked."""
    asked: list[int] = []

    def was_asked() -> bool:
        found = bool(asked)
        asked.clear()
        return found

    before = signal.signal(signal.SIGUSR1, lambda number, _: asked.append(number))
    try:
        yield was_asked
    finally:
        signal.signal(signal.SIGUSR1, before)


def free_name(stem: str) -> Path:
    """The first of runs/STEM-001, runs/STEM-002, ... that is not there.

    Raises:
        InputError: all are.
    """
    for number in range(1, 100_000):
        path = Path("runs") / f"{stem}-{number:03d}"
        if not path.exists():
            return path
    raise InputError("runs/ is full of runs; name a folder with --out")
