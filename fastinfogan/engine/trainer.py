"""The loop around the iteration: metrics, pictures, checkpoints, stopping and going on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fastinfogan import checkpoint
from fastinfogan.checkpoint import Checkpoint
from fastinfogan.data import Source
from fastinfogan.engine.iteration import Iteration
from fastinfogan.engine.run_directory import MetricsLog, RunDirectory
from fastinfogan.errors import InputError
from fastinfogan.networks import InfoGAN


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Schedule:
    """What happens at which iteration boundaries.

    Attributes:
        checkpoint_every: iterations between checkpoints; one is written at the end in any case.
        keep: how many checkpoints stay on disk.
        pictures_every: iterations between calls of `on_pictures`; 0 for the end alone.
        on_metrics: called with each line of metrics.
        on_pictures: called when pictures are due; the networks may be used and must be given back
            in training mode.
        on_warning: called with a line about something that did not stop the run.
        stop: asked at every boundary; a true answer ends the run there.
    """

    checkpoint_every: int = 500
    keep: int = 3
    pictures_every: int = 0
    on_metrics: Callable[[dict[str, float]], None] = _nothing
    on_pictures: Callable[[], None] = _nothing
    on_warning: Callable[[str], None] = _nothing
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise InputError(f"--checkpoint-every must be 1 or more, not {self.checkpoint_every}")
        if self.pictures_every < 0:
            raise InputError(f"--pictures-every must be 0 or more, not {self.pictures_every}")


class Trainer:
    """A run in progress.

    Args:
        run: where it lives; tells experiment and settings.
        source: the images.
        device: where to train.

    Attributes:
        iteration: the two steps and their state.
        done: how many iterations the state has seen.

    Raises:
        InputError: the images are not those that the run was started with.
    """

    def __init__(self, run: RunDirectory, source: Source, device: torch.device) -> None:
        if source.fingerprint != run.settings.data_fingerprint:
            raise InputError(
                f"{source.name}: these are not the images that {run.path} was started with "
                f"(SHA-256 {source.fingerprint[:12]}, then {run.settings.data_fingerprint[:12]})"
            )
        self.run = run
        self.done = 0
        self._saved = -1
        networks = InfoGAN(run.experiment, run.settings.seed).to(device)
        if run.settings.precision == "fp64":
            networks = networks.double()
        images = torch.from_numpy(source.images).to(device)
        self.iteration = Iteration(run.experiment, run.settings, networks, images)

    @property
    def networks(self) -> InfoGAN:
        """The networks being trained."""
        return self.iteration.networks

    def resume(self) -> None:
        """Go on exactly where the run's newest checkpoint was written.

        Raises:
            InputError: there is none, it is damaged, or it is another experiment's.
        """
        folder = self.run.newest_checkpoint()
        found = checkpoint.load(folder)
        described = {
            "experiment": self.run.experiment.name,
            "settings": self.run.settings.to_dict(),
        }
        for part, here in described.items():
            if found.state.get(part) != here:
                raise InputError(
                    f"{folder}: written by a run of another {part} than "
                    f"{self.run.path / 'config.json'} describes"
                )
        for kind, tensors in self.iteration.state().items():
            checkpoint.fit(found.tensors.get(kind, {}), tensors, folder / f"{kind}.safetensors")
        self.iteration.summed = int(found.state["summed"])
        self.done = self._saved = int(found.state["iteration"])

    def take_weights(self, other: RunDirectory) -> None:
        """Start from another run's weights and batch-norm statistics, and from nothing else of it.

        Raises:
            InputError: its newest checkpoint is damaged or has networks of other shapes.
        """
        folder = other.newest_checkpoint()
        weights = checkpoint.load(folder).tensors.get("weights", {})
        checkpoint.fit(weights, dict(self.networks.state_dict()), folder / "weights.safetensors")

    def train(self, until: int, schedule: Schedule) -> None:
        """Train until `until` iterations are done, or `schedule.stop` says so.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        settings = self.run.settings
        log = MetricsLog(self.run, self.done)
        self.networks.train()
        started, since = time.perf_counter(), self.done

        def write_metrics() -> None:
            nonlocal started, since
            line: dict[str, float] = {"iteration": self.done, **self.iteration.read()}
            seconds = time.perf_counter() - started
            line["seconds_per_iteration"] = seconds / (self.done - since)
            line["images_per_second"] = settings.batch_size * (self.done - since) / seconds
            log.write(line)
            schedule.on_metrics(line)
            started, since = time.perf_counter(), self.done

        try:
            while self.done < until and not schedule.stop():
                self.iteration.run(self.done)
                self.done += 1
                if self.done % settings.log_every == 0:
                    write_metrics()
                begun = time.perf_counter()
                if schedule.pictures_every and self.done % schedule.pictures_every == 0:
                    schedule.on_pictures()
                if self.done % schedule.checkpoint_every == 0:
                    try:
                        self.save(schedule.keep)
                    except OSError as error:
                        schedule.on_warning(f"no checkpoint at iteration {self.done}: {error}")
                started += time.perf_counter() - begun
            if self.iteration.summed and self.done == until:
                write_metrics()
            self.save(schedule.keep)
            schedule.on_pictures()
        finally:
            log.close()

    def save(self, keep: int = 3) -> Path:
        """Write a checkpoint of the present state, if there is none yet, and prune older ones.

        Raises:
            OSError: it could not be written; older ones are kept.
        """
        if self._saved == self.done:
            return self.run.newest_checkpoint()
        state = {
            "iteration": self.done,
            "summed": self.iteration.summed,
            "experiment": self.run.experiment.name,
            "settings": self.run.settings.to_dict(),
        }
        folder = checkpoint.save(
            self.run.checkpoints, self.done, Checkpoint(self.iteration.state(), state)
        )
        self._saved = self.done
        checkpoint.prune(self.run.checkpoints, keep)
        return folder
