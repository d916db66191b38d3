"""Start and resume runs: open their images, settle what is left open, build their trainers."""

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch

from fastinfogan.data import ImageSet, open_image_set
from fastinfogan.data.decoders.base import Decoder, DecoderName
from fastinfogan.data.image_set import EncodedImageSet
from fastinfogan.data.subset import evaluation_subset, is_annotated
from fastinfogan.data.synthetic import Progress
from fastinfogan.distributed import SINGLE_PROCESS, Distributed
from fastinfogan.engine.config import (
    BatchNorm,
    Information,
    PrecisionName,
    RunOptions,
    TrainConfig,
    choose_precision,
)
from fastinfogan.engine.execution import ExecutionName
from fastinfogan.engine.run_directory import RunDirectory, SavedState
from fastinfogan.engine.trainer import Trainer
from fastinfogan.errors import InputError, reporting_out_of_memory
from fastinfogan.experiments import EXPERIMENTS, Experiment
from fastinfogan_kernels.inputs.real_images import Augmentation

TrainingImages = ImageSet | Decoder
"""What a run trains on: decoded images, or what decodes them."""

_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_DECODER_BATCH = 128


def new_config(
    experiment: Experiment,
    data: Path | None,
    device: str,
    *,
    seed: int = 0,
    precision: PrecisionName = "auto",
    augmentation: Augmentation | None = None,
    information: Information = "maximise",
    log_every: int = 10,
    batch_norm: BatchNorm = "synchronised",
) -> TrainConfig:
    """Settle the configuration of a new run; its data_fingerprint is yet to be filled in.

    Args:
        experiment: with the batch size to train at.
        data: path of the images; None for the embedded or rendered ones.
        device: "cpu" or "cuda".
        seed: see `TrainConfig`.
        precision: "auto" is settled for the device.
        augmentation: None for "affine" on the embedded digits and "none" elsewhere.
        information: see `TrainConfig`.
        log_every: see `TrainConfig`.
        batch_norm: see `TrainConfig`.

    Raises:
        InputError: an argument is out of range, or the device lacks the precision.
    """
    chosen, _ = choose_precision(precision, torch.device(device))
    known = EXPERIMENTS.get(experiment.name)
    digits = data is None and known is not None and known.data == "digits"
    return TrainConfig(
        seed=seed,
        batch_size=experiment.batch_size,
        precision=chosen.name,
        augmentation=augmentation or ("affine" if digits else "none"),
        information=information,
        data=str(data.absolute()) if data else None,
        data_fingerprint={},
        log_every=log_every,
        batch_norm=batch_norm,
    )


@dataclass(frozen=True)
class Session:
    """How this process trains, whatever the run.

    Attributes:
        execution: name of the execution mode.
        distributed: the processes that train together.
        progress: called while images are rendered.
    """

    execution: ExecutionName = "auto"
    distributed: Distributed = SINGLE_PROCESS
    progress: Progress | None = None

    def open_new(
        self,
        path: Path,
        experiment: Experiment,
        config: TrainConfig,
        options: RunOptions,
        *,
        require_free: bool = True,
    ) -> tuple[RunDirectory, TrainingImages]:
        """Open the images of a new run; nothing is written.

        Args:
            path: folder of the run.
            experiment: what to train.
            config: see `new_config`.
            options: where and how long to train.
            require_free: whether to refuse a folder with something in it.

        Raises:
            InputError: the images, the folder or the batch size do not fit.
        """
        config = replace(config, ranks=self.distributed.world_size)
        self.distributed.rows(config.batch_size)
        if require_free and self.distributed.is_main:
            RunDirectory(path, experiment, config, options).require_free()
        data = Path(config.data) if config.data else None
        with self.distributed.main_first():
            images = open_images(data, experiment, options, self.progress)
        config = replace(config, data_fingerprint=images.fingerprint)
        return RunDirectory(path, experiment, config, options), images

    def start(
        self, run: RunDirectory, images: TrainingImages, weights: SavedState | None = None
    ) -> Trainer:
        """Build a new run's trainer, then make its folder.

        Args:
            run: see `open_new`.
            images: likewise.
            weights: to start from, written as the first checkpoint; None for random ones.

        Raises:
            InputError: the weights or the memory do not suffice; no folder was made.
            OSError: the first checkpoint could not be written; no folder is left.
        """
        with reporting_out_of_memory("train on fewer images"):
            trainer = self._trainer(run, images)
        if weights:
            trainer.take_weights(weights)
        if self.distributed.is_main:
            run.make()
        if weights:
            try:
                trainer.save()
            except OSError:
                shutil.rmtree(run.path, ignore_errors=True)
                raise
        return trainer

    def resume(
        self, run: RunDirectory, options: RunOptions, data: Path | None = None
    ) -> tuple[Trainer, TrainingImages]:
        """Resume a run at its newest checkpoint, or at its seed if it has none.

        Args:
            run: an earlier run.
            options: what is asked of it from now on; recorded.
            data: where its images are now, if elsewhere; recorded.

        Raises:
            InputError: it cannot be resumed, or not to that iteration; nothing was changed.
        """
        world_size = self.distributed.world_size
        if run.config.batch_norm == "per-rank" and run.config.ranks != world_size:
            raise InputError(
                f"{run.path} was started with {run.config.ranks} ranks and batch-norm statistics "
                f"per rank; it cannot be resumed with {world_size}"
            )
        saved = None
        if run.has_checkpoint():
            saved = run.read_checkpoint()
        elif run.options.init_from:
            raise InputError(
                f"{run.path}: was to start from the weights of {run.options.init_from.run} and "
                "holds no checkpoint; start it again"
            )
        step = saved.iteration if saved else 0
        if options.iterations < step:
            raise InputError(
                f"{run.path} has done {step} iterations; `iterations={options.iterations}` is less"
            )
        config = replace(run.config, ranks=world_size)
        if data:
            config = replace(config, data=str(data.absolute()))
        with self.distributed.main_first():
            images = images_of(run, options, data, self.progress)
        current = RunDirectory(run.path, run.experiment, config, options)
        with reporting_out_of_memory("this run was started on a larger machine"):
            trainer = self._trainer(current, images)
        if saved:
            trainer.resume(saved)
        self.distributed.barrier()  # config.json is written when every process has read it
        if self.distributed.is_main:
            run.update(config, options)
        return trainer, images

    def _trainer(self, run: RunDirectory, images: TrainingImages) -> Trainer:
        return Trainer(
            run,
            images,
            torch.device(run.options.device),
            self.execution,
            self.distributed,
            run.options.cache,
            run.options.on_bad_image,
        )


def open_images(
    data: Path | None,
    experiment: Experiment,
    options: RunOptions,
    progress: Progress | None = None,
) -> TrainingImages:
    """Open a set: its images if they are decoded, else the set and its decoder.

    Args:
        data: path of the set; None for the embedded or rendered one.
        experiment: whose images they become.
        options: decoder, device and what to do about bad images.
        progress: called while images are rendered.

    Raises:
        InputError: they cannot be read or do not fit, or the options ask of decoded images what
            only encoded ones have.
    """
    images = open_image_set(data, experiment, progress, options.on_bad_image)
    if isinstance(images, EncodedImageSet):
        return open_decoder(images, options.decoder, options.device)
    for name, value, default in (
        ("decoder", options.decoder, "auto"),
        ("on_bad_image", options.on_bad_image, "fail"),
    ):
        if value != default:
            raise InputError(
                f"`{name}={value!r}`: {images.name} holds images that are decoded already; "
                "it applies to encoded images only"
            )
    return images


def open_decoder(images: EncodedImageSet, name: DecoderName, device: str) -> Decoder:
    """Make a set's decoder.

    Raises:
        InputError: the decoder does not work here.
    """
    from fastinfogan.data.decoders.base import choose_decoder

    return choose_decoder(name, images, device, _DECODER_BATCH)[0]


def images_of(
    run: RunDirectory,
    options: RunOptions | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
) -> TrainingImages:
    """Open the images that a run was started with, where they were or where they are now."""
    path = data or (Path(run.config.data) if run.config.data else None)
    return open_images(path, run.experiment, options or run.options, progress)


def name_of(images: TrainingImages) -> str:
    """Return what the user calls a set."""
    return images.name if isinstance(images, ImageSet) else images.image_set.name


def annotated_images(
    images: TrainingImages, options: RunOptions, report: Callable[[str], object]
) -> ImageSet | str:
    """Return decoded images with labels or factors, to evaluate on; or why there are none."""
    if isinstance(images, ImageSet):
        return images
    if not is_annotated(images.image_set):
        return f"{images.image_set.name}: no labels"
    return evaluation_subset(
        images, lambda test: open_decoder(test, options.decoder, options.device), report
    )


def free_path(stem: str) -> Path:
    """Return the first of runs/STEM-001, runs/STEM-002, ... that does not exist.

    Raises:
        InputError: all exist.
    """
    for number in range(1, 100_000):
        path = Path("runs") / f"{stem}-{number:03d}"
        if not path.exists():
            return path
    raise InputError("runs/ is full of runs; name a folder by `out`")


class Signals:
    """Signals that came to this process while training.

    SIGINT and SIGTERM stop the run between two iterations, a second one ends the process at once;
    SIGUSR1 has a checkpoint written. See `handled`.
    """

    def __init__(self) -> None:
        self._stop: list[signal.Signals] = []
        self._save = False

    @classmethod
    @contextmanager
    def handled(cls) -> Iterator["Signals"]:
        """Handle the signals inside."""
        signals = cls()

        def stop(number: int, _: FrameType | None) -> None:
            signals._stop.append(signal.Signals(number))
            for each in _EXIT_CODES:
                signal.signal(each, before[each] if each != signal.SIGINT else signal.SIG_DFL)

        def save(number: int, _: FrameType | None) -> None:
            signals._save = True

        before = {each: signal.signal(each, stop) for each in _EXIT_CODES}
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, save)
        try:
            yield signals
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def stop(self) -> bool:
        """Return whether the run is to stop."""
        return bool(self._stop)

    def save(self) -> bool:
        """Return whether a checkpoint was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    def exit_code(self, distributed: Distributed) -> int:
        """Return the exit code of a stopped run, 0 if it was not; the same on every process."""
        came = distributed.any_process(*(each in self._stop for each in _EXIT_CODES))
        if self._stop:
            return _EXIT_CODES[self._stop[0]]
        return next(
            (code for code, seen in zip(_EXIT_CODES.values(), came, strict=True) if seen), 0
        )
