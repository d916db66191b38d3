"""The loop around the iteration: metrics, pictures, checkpoints, stopping and going on."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch

from fastinfogan.checkpoint import difference
from fastinfogan.data import ImageSet
from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.cache.policy import CacheName
from fastinfogan.data.decoders.base import Decoder
from fastinfogan.data.loader import Sampler
from fastinfogan.data.make_loader import fill_shared_cache, make_loader
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
        save_now: asked at every boundary; a true answer writes a checkpoint there.
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
        run: where it lives, or will live: nothing is written before `save` or `train`.
        source: the images, or a set that is yet to be decoded and who decodes it.
        device: where to train.
        execution: who drives the iteration.
        distributed: the processes that train together; one of them writes.
        cache: where decoded images are kept, see `data.place`.
        on_bad_image: what is done about pictures that cannot be decoded.

    Attributes:
        iteration: the two steps and their state.
        execution: who drives it.
        feed: has its images ready.
        done: how many iterations the state has seen.
        seconds_to_first: from making the trainer to the end of the first iterations that it ran,
            with all that was compiled and captured for them; None before.

    Raises:
        InputError: the images are not those that the run was started with.
    """

    def __init__(
        self,
        run: RunDirectory,
        source: ImageSet | Decoder,
        device: torch.device,
        execution: ExecutionName = "auto",
        distributed: Distributed = SINGLE_PROCESS,
        cache: CacheName = "auto",
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        images = source.source if isinstance(source, Decoder) else source
        made_at = time.perf_counter()
        if differs := difference(source.fingerprint, run.config.data_fingerprint):
            raise InputError(
                f"{images.name}: these are not the images that {run.path} was started with; "
                f"now and then: {differs}"
            )
        if distributed.world_size != run.config.ranks:
            raise InputError(
                f"{run.path} is of {run.config.ranks} processes, "
                f"{distributed.world_size} are training it"
            )
        self.run = run
        self.distributed = distributed
        self.done = 0
        self.seconds_to_first: float | None = None
        self._saved = -1
        self._made_at = made_at
        networks = InfoGAN(run.experiment, run.config.seed).to(device)
        if run.config.precision == "fp64":
            networks = networks.double()
        seed, batch = run.config.seed, run.config.batch_size
        order = Sampler(seed, len(images), batch, distributed.rows(batch))
        if distributed.world_size > 1 and isinstance(source, Decoder) and cache in ("auto", "file"):
            fill_shared_cache(distributed, source, cache, on_bad_image)
        self.feed = make_loader(source, device, order, cache, on_bad_image)
        self.iteration = Iteration(
            run.experiment,
            run.config,
            networks,
            self.feed.images,
            distributed=distributed,
            in_order=self.feed.in_order,
        )
        self.execution = choose_execution(execution, device, distributed.world_size)[0](
            self.iteration
        )

    @property
    def networks(self) -> InfoGAN:
        """The networks being trained."""
        return self.iteration.networks

    def resume(self, saved: SavedState | None = None) -> None:
        """Go on exactly where a checkpoint was written, the run's newest if none is given.

        Raises:
            InputError: there is none, it is damaged, or another experiment's or other settings'.
        """
        saved = saved or self.run.read_checkpoint()
        for kind, tensors in self.iteration.state().items():
            saved.fit(kind, tensors)
        self.iteration.restored()
        self.done = self._saved = saved.iteration

    def take_weights(self, saved: SavedState) -> None:
        """Start from a run's weights and batch-norm statistics, and from nothing else of it.

        Raises:
            InputError: its networks have other shapes.
        """
        saved.fit("weights", dict(self.networks.state_dict()))
        self.iteration.restored()

    def train(self, until: int, schedule: Schedule) -> None:
        """Train until `until` iterations are done, or `schedule.stop` says so.

        A checkpoint, a picture or a line of metrics that cannot be written becomes a warning; the
        last checkpoint must be.

        Raises:
            InputError: a picture cannot be decoded, or too many cannot; a checkpoint was written.
            OSError: the last checkpoint could not be written.
            TrainingError: a loss or a weight is no longer finite; no checkpoint was written of it.
        """
        settings = self.run.config
        log = MetricsLog(self.run, self.done) if self.distributed.is_main else None
        self.networks.train()
        self.distributed.barrier()  # nobody writes before everybody has read
        started, since = time.perf_counter(), self.done
        first: dict[str, float] = {}

        def write_metrics() -> None:
            nonlocal started, since
            try:
                line: dict[str, float] = {"iteration": self.done, **self.iteration.read()}
            except TrainingError as error:
                self._diverged(str(error))
            self._require_finite(line)
            seconds = time.perf_counter() - started
            line["seconds_per_iteration"] = seconds / (self.done - since)
            line["images_per_second"] = settings.batch_size * (self.done - since) / seconds
            if self.feed.seconds_waited is not None:
                line["data_seconds"], self.feed.seconds_waited = self.feed.seconds_waited, 0.0
            line |= first
            first.clear()
            if log:
                attempt("metrics", lambda: log.write(line))
                schedule.on_metrics(line)
            started, since = time.perf_counter(), self.done

        def attempt(what: str, write: Callable[[], object]) -> None:
            try:
                write()
            except (OSError, InputError) as error:
                schedule.on_warning(f"no {what} at iteration {self.done}: {error}")

        # Several ranks stop at a boundary that they agree on.
        stop_waiting = schedule.stop if self.distributed.world_size == 1 else lambda: False

        def prepare(count: int) -> bool:
            there, error = False, None
            try:
                there = self.feed.prepare(self.done, count, stop_waiting)
            except InputError as found:
                error = found
            failed = error is not None
            if self.feed.seconds_waited is not None:  # ranks decode each their own pictures
                (failed,) = self.distributed.any_process(failed)
            if failed:
                if self.done:
                    attempt("checkpoint", lambda: self.save(schedule.keep))
                raise error or InputError("another rank lacks its images; its message says why")
            tell()
            return there

        def tell() -> None:
            for told in self.feed.messages(self.run.path if self.distributed.is_main else None):
                schedule.on_warning(told)

        def pictures() -> None:
            if self.distributed.is_main:
                attempt("pictures", schedule.on_pictures)

        try:
            if self.done < until:
                self.execution.prepare()
            stop, save_now = self.distributed.any_process(schedule.stop(), False)
            while self.done < until and not stop:
                count = self._to_next_boundary(until, schedule)
                if not prepare(count):
                    break
                self.execution.run(self.done, count)
                self.done += count
                if self.seconds_to_first is None:
                    self._wait_for_device()
                    self.seconds_to_first = time.perf_counter() - self._made_at
                    first["seconds_to_first_iteration"] = self.seconds_to_first
                    if self.done % settings.log_every and self.done < until:
                        # The rate is to be that of what follows.
                        started, since = time.perf_counter(), self.done
                if self.done % settings.log_every == 0 or self.done == until:
                    write_metrics()
                begun = time.perf_counter()
                stop, save_now = self.distributed.any_process(schedule.stop(), schedule.save_now())
                if self.done % schedule.checkpoint_every == 0 or save_now:
                    attempt("checkpoint", lambda: self.save(schedule.keep))
                if schedule.pictures_every and self.done % schedule.pictures_every == 0:
                    pictures()
                started += time.perf_counter() - begun
            self.save(schedule.keep)
            pictures()
        finally:
            self.feed.close()
            tell()
            if log:
                attempt("TensorBoard events", log.close)

    def _wait_for_device(self) -> None:
        if self.iteration.device.type == "cuda":
            torch.cuda.synchronize(self.iteration.device)

    def _to_next_boundary(self, until: int, schedule: Schedule) -> int:
        """How many iterations may run before something is due."""
        every = (self.run.config.log_every, schedule.checkpoint_every, schedule.pictures_every)
        due = [n - self.done % n for n in every if n]
        return min(self.execution.iterations_per_call, self.feed.at_once, until - self.done, *due)

    def save(self, keep: int = 3) -> None:
        """Write a checkpoint of the present state, if there is none yet, and prune older ones.

        Of several ranks rank 0 alone writes; all check.

        Raises:
            OSError: it could not be written; older ones are kept.
            TrainingError: the state is not finite; older ones are kept.
        """
        if self._saved == self.done:
            return
        state = self.iteration.state()
        for kind, tensors in state.items():
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    self._diverged(f"{kind} {name} is not finite")
        if self.distributed.is_main:
            self.run.write_checkpoint(self.done, state, keep)
        self._saved = self.done

    def _require_finite(self, line: dict[str, float]) -> None:
        for name, value in line.items():
            if not math.isfinite(value):
                self._diverged(f"{name} is {value}")

    def _diverged(self, what: str) -> NoReturn:
        older = f"its newest checkpoint is of iteration {self._saved}" if self._saved >= 0 else ""
        raise TrainingError(
            f"{self.run.path}: training diverged by iteration {self.done}, {what}; "
            f"nothing was saved of it, {older or 'and there is no older checkpoint'}"
        )
