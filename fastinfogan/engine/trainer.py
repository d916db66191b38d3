"""The loop around the iteration, with metrics, pictures and checkpoints in between."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch

from fastinfogan.checkpoint import difference
from fastinfogan.data import ImageSet
from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.cache.fill import Sampler, fill_shared_cache
from fastinfogan.data.cache.policy import CacheName
from fastinfogan.data.decoders.base import Decoder
from fastinfogan.data.loader import make_loader
from fastinfogan.distributed import SINGLE_PROCESS, Distributed
from fastinfogan.engine.execution import ExecutionName, choose_execution
from fastinfogan.engine.iteration import Iteration
from fastinfogan.engine.run_directory import MetricsLog, RunDirectory, SavedState
from fastinfogan.errors import InputError, TrainingError
from fastinfogan.networks import InfoGAN


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Schedule:
    """What happens between which iterations.

    Attributes:
        checkpoint_every: iterations between checkpoints; one is written at the end in any case.
        keep: how many checkpoints stay on disk.
        pictures_every: iterations between calls of `on_pictures`; 0 for the end alone.
        on_metrics: called with each line of metrics.
        on_pictures: called when pictures are due; may use the networks, and leaves them in
            training mode.
        on_warning: called with a line about something that did not stop the run.
        stop: polled after every call of the execution mode; true ends the run there.
        save_now: polled likewise; true has a checkpoint written there.
    """

    checkpoint_every: int = 500
    keep: int = 3
    pictures_every: int = 0
    on_metrics: Callable[[dict[str, float]], None] = _nothing
    on_pictures: Callable[[], None] = _nothing
    on_warning: Callable[[str], None] = _nothing
    stop: Callable[[], bool] = lambda: False
    save_now: Callable[[], bool] = lambda: False


class Trainer:
    """A run in progress.

    Args:
        run: where it is, or will be: nothing is written before `save` or `train`.
        images: the images, or a decoder of those that are yet to be decoded.
        device: where to train.
        execution: name of the execution mode.
        distributed: the processes that train together; the main one writes.
        cache: where decoded images are cached, see `fastinfogan.data.cache.policy`.
        on_bad_image: what to do about images that cannot be decoded.

    Attributes:
        iteration: the two steps and their state.
        execution: runs it.
        loader: prepares its images.
        step: how many iterations the state has seen.
        seconds_to_first: from making the trainer to the end of the first iterations that it ran,
            with all that was compiled and captured for them; None before.

    Raises:
        InputError: the images are not those that the run was started with.
    """

    def __init__(
        self,
        run: RunDirectory,
        images: ImageSet | Decoder,
        device: torch.device,
        execution: ExecutionName = "auto",
        distributed: Distributed = SINGLE_PROCESS,
        cache: CacheName = "auto",
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        self._made_at = time.perf_counter()
        config, image_set = run.config, images.image_set if isinstance(images, Decoder) else images
        if images.fingerprint != config.data_fingerprint:
            raise InputError(
                f"{image_set.name}: these are not the images that {run.path} was started with; "
                f"now and then: {difference(images.fingerprint, config.data_fingerprint)}"
            )
        if distributed.world_size != config.ranks:
            raise InputError(
                f"{run.path} is of {config.ranks} processes, "
                f"{distributed.world_size} are training it"
            )
        self.run = run
        self.distributed = distributed
        self.step = 0
        self.seconds_to_first: float | None = None
        self._saved_step = -1
        rows = distributed.rows(config.batch_size)
        sampler = Sampler(config.seed, len(image_set), config.batch_size, rows)
        if distributed.world_size > 1 and isinstance(images, Decoder) and cache in ("auto", "file"):
            fill_shared_cache(distributed, images, cache, on_bad_image)
        self.loader = make_loader(images, device, sampler, cache, on_bad_image)
        self.iteration = Iteration.create(
            run.experiment,
            config,
            self.loader.images,
            device,
            distributed=distributed,
            in_order=self.loader.in_order,
        )
        mode, _ = choose_execution(execution, device, distributed.world_size)
        self.execution = mode(self.iteration)

    @property
    def networks(self) -> InfoGAN:
        """The networks being trained."""
        return self.iteration.networks

    def resume(self, saved: SavedState | None = None) -> None:
        """Continue exactly where a checkpoint was written; the run's newest if none is given.

        Raises:
            InputError: there is none, it is damaged, or it is of another run.
        """
        saved = saved or self.run.read_checkpoint()
        for kind, tensors in self.iteration.state().items():
            saved.fit(kind, tensors)
        self.iteration.restored()
        self.step = self._saved_step = saved.iteration

    def take_weights(self, saved: SavedState) -> None:
        """Start from another run's weights and batch-norm statistics, and nothing else of it.

        Raises:
            InputError: its networks have other shapes.
        """
        saved.fit("weights", dict(self.networks.state_dict()))
        self.iteration.restored()

    def train(self, until: int, schedule: Schedule | None = None) -> None:
        """Train until `until` iterations are done in all, or `schedule.stop` is true.

        A checkpoint, a picture or a line of metrics that cannot be written becomes a warning; the
        last checkpoint must be written.

        Raises:
            InputError: an image cannot be decoded, or too many cannot; a checkpoint was written.
            OSError: the last checkpoint could not be written.
            TrainingError: a loss or a weight is no longer finite; no checkpoint was written of it.
        """
        schedule = schedule or Schedule()
        metrics = _Metrics(self, schedule)
        self.networks.train()
        self.distributed.barrier()  # no process writes before all have read
        metrics.restart()
        try:
            if self.step < until:
                self.execution.prepare()
            stop, save_now = self.distributed.any_process(schedule.stop(), False)
            while self.step < until and not stop:
                count = self._iterations_until_due(until, schedule)
                if not self._prepare_images(count, schedule):
                    break
                self.execution.run(self.step, count)
                self.step += count
                metrics.update(last=self.step == until)
                with metrics.paused():
                    stop, save_now = self.distributed.any_process(
                        schedule.stop(), schedule.save_now()
                    )
                    if save_now or self._is_due(schedule.checkpoint_every):
                        self.attempt("checkpoint", lambda: self.save(schedule.keep), schedule)
                    if self._is_due(schedule.pictures_every):
                        self._draw(schedule)
            self.save(schedule.keep)
            self._draw(schedule)
        finally:
            self.loader.close()
            self._report_bad_images(schedule)
            metrics.close()

    def save(self, keep: int = 3) -> None:
        """Write a checkpoint of the present state, if there is none yet, and prune older ones.

        The main process alone writes; all check.

        Raises:
            OSError: it could not be written; older ones are left.
            TrainingError: the state is not finite; older ones are left.
        """
        if self._saved_step == self.step:
            return
        state = self.iteration.state()
        for kind, tensors in state.items():
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    self.fail(f"{kind} {name} is not finite")
        if self.distributed.is_main:
            self.run.write_checkpoint(self.step, state, keep)
        self._saved_step = self.step

    def attempt(self, what: str, write: Callable[[], object], schedule: Schedule) -> None:
        """Write something; warn if it cannot be written."""
        try:
            write()
        except (OSError, InputError) as error:
            schedule.on_warning(f"no {what} at iteration {self.step}: {error}")

    def fail(self, reason: str) -> NoReturn:
        """Raise that training diverged."""
        newest = (
            f"its newest checkpoint is of iteration {self._saved_step}"
            if self._saved_step >= 0
            else "and there is no older checkpoint"
        )
        raise TrainingError(
            f"{self.run.path}: training diverged by iteration {self.step}, {reason}; "
            f"nothing was saved of it, {newest}"
        )

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _iterations_until_due(self, until: int, schedule: Schedule) -> int:
        """Count the iterations that may run before something is due."""
        every = (self.run.config.log_every, schedule.checkpoint_every, schedule.pictures_every)
        due = [n - self.step % n for n in every if n]
        calls = self.execution.iterations_per_call, self.loader.iterations_per_call
        return min(*calls, until - self.step, *due)

    def _prepare_images(self, count: int, schedule: Schedule) -> bool:
        """Prepare the images of the next iterations; false if the run is to stop instead."""
        # Several processes stop where all of them do.
        stop = schedule.stop if self.distributed.world_size == 1 else lambda: False
        ready, error = False, None
        try:
            ready = self.loader.prepare(self.step, count, stop)
        except InputError as found:
            error = found
        failed = error is not None
        if self.loader.seconds_waited is not None:  # every process decodes its own images
            (failed,) = self.distributed.any_process(failed)
        if failed:
            if self.step:
                self.attempt("checkpoint", lambda: self.save(schedule.keep), schedule)
            raise error or InputError("another rank lacks its images; its message says why")
        self._report_bad_images(schedule)
        return ready

    def _report_bad_images(self, schedule: Schedule) -> None:
        for message in self.loader.messages(self.run.path if self.distributed.is_main else None):
            schedule.on_warning(message)

    def _draw(self, schedule: Schedule) -> None:
        if self.distributed.is_main:
            self.attempt("pictures", schedule.on_pictures, schedule)


class _Metrics:
    """Metrics that the iterations left on the device, with rates.

    Args:
        trainer: whose iterations.
        schedule: with who else gets each line.
    """

    def __init__(self, trainer: Trainer, schedule: Schedule) -> None:
        self._trainer, self._schedule = trainer, schedule
        self._log = MetricsLog(trainer.run, trainer.step) if trainer.distributed.is_main else None
        if self._log and self._log.events_missing:
            schedule.on_warning(self._log.events_missing)
        self._once: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Measure rates from here on."""
        self._started, self._first = time.perf_counter(), self._trainer.step

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside from the rates."""
        begun = time.perf_counter()
        yield
        self._started += time.perf_counter() - begun

    def update(self, *, last: bool) -> None:
        """Count iterations that have run; write a line if one is due.

        Raises:
            TrainingError: a metric is not finite.
        """
        trainer = self._trainer
        is_due = trainer.step % trainer.run.config.log_every == 0 or last
        if trainer.seconds_to_first is None:
            if trainer.iteration.device.type == "cuda":
                torch.cuda.synchronize(trainer.iteration.device)
            trainer.seconds_to_first = time.perf_counter() - trainer._made_at
            self._once["seconds_to_first_iteration"] = trainer.seconds_to_first
            if not is_due:
                self.restart()  # the first line's rate is that of the iterations after the first
        if is_due:
            self._write()

    def _write(self) -> None:
        trainer = self._trainer
        try:
            line: dict[str, float] = {"iteration": trainer.step, **trainer.iteration.read()}
        except TrainingError as error:
            trainer.fail(str(error))
        for name, value in line.items():
            if not math.isfinite(value):
                trainer.fail(f"{name} is {value}")
        seconds = (time.perf_counter() - self._started) / (trainer.step - self._first)
        line["seconds_per_iteration"] = seconds
        line["images_per_second"] = trainer.run.config.batch_size / seconds
        if trainer.loader.seconds_waited is not None:
            line["data_seconds"], trainer.loader.seconds_waited = trainer.loader.seconds_waited, 0.0
        line |= self._once
        self._once = {}
        if log := self._log:
            trainer.attempt("metrics", lambda: log.write(line), self._schedule)
            self._schedule.on_metrics(line)
        self.restart()

    def close(self) -> None:
        """Flush the log."""
        if self._log:
            self._trainer.attempt("TensorBoard events", self._log.close, self._schedule)
