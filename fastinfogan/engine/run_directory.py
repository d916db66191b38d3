"""The folder of a run.

config.json       experiment, hyperparameters ("settings"), options ("plan"), versions, hardware
metrics.jsonl     one line every few iterations
tensorboard/      the same as events
pictures/         samples and traversals
checkpoints/      iteration-000500, ...
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastinfogan import checkpoint
from fastinfogan.checkpoint import Checkpoint
from fastinfogan.engine.config import RunOptions, TrainConfig, hardware, versions
from fastinfogan.errors import InputError, MissingPackageError, require
from fastinfogan.experiments import Experiment
from fastinfogan.files import write_json, write_text

_FORMAT = 4


@dataclass(frozen=True)
class SavedState:
    """A checkpoint of a run, known to be this run's.

    Attributes:
        folder: where it lies.
        tensors: as in `Checkpoint`.
        iteration: how many iterations it has seen.
    """

    folder: Path
    tensors: checkpoint.Tensors
    iteration: int

    def fit(self, kind: str, into: dict[str, Tensor]) -> None:
        """Copy one kind of tensors into a state; see `checkpoint.fit`.

        Raises:
            InputError: they are not the same tensors; nothing was copied.
        """
        where = self.folder / f"{kind}.safetensors"
        checkpoint.fit(self.tensors.get(kind, {}), into, where)


class RunDirectory:
    """A run on disk.

    Attributes:
        path: the folder.
        experiment: what is trained there.
        config: what decides its numbers.
        options: what else was asked of it.
    """

    def __init__(
        self, path: Path, experiment: Experiment, config: TrainConfig, options: RunOptions
    ) -> None:
        self.path = path
        self.experiment = experiment
        self.config = config
        self.options = options

    @classmethod
    def create(
        cls,
        path: Path,
        experiment: Experiment,
        config: TrainConfig,
        options: RunOptions | None = None,
    ) -> "RunDirectory":
        """Start a run in a folder that is new or empty; without a plan, to be trained by hand.

        Raises:
            InputError: something is there already, or the folder cannot be made.
        """
        run = cls(path, experiment, config, options or RunOptions(experiment.iterations))
        run.make()
        return run

    def require_free(self) -> None:
        """Check that the folder is new or empty.

        Raises:
            InputError: it is not.
        """
        path = self.path
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            what = "another run" if (path / "config.json").exists() else "files"
            raise InputError(f"{path}: holds {what} already; name another `out`, or `resume` it")

    def make(self) -> None:
        """Make the folder, with config.json in it.

        Raises:
            InputError: something is there already, or the folder cannot be made.
        """
        self.require_free()
        machine = {"versions": versions(), "hardware": hardware()}
        try:
            self.pictures.mkdir(parents=True)
            self.checkpoints.mkdir()
            self._write_config(machine)
        except OSError as error:
            raise InputError(f"{self.path}: a run cannot be written here: {error}") from error

    def update(self, config: TrainConfig, options: RunOptions) -> None:
        """Record what a resume changes.

        Raises:
            OSError: config.json cannot be written; it is as it was.
        """
        if (config, options) == (self.config, self.options):
            return
        before = json.loads((self.path / "config.json").read_text())
        self.config, self.options = config, options
        self._write_config({part: before[part] for part in ("versions", "hardware")})

    def _write_config(self, machine: dict[str, Any]) -> None:
        config = {
            "format": _FORMAT,
            "experiment": self.experiment.to_dict(),
            "settings": self.config.to_dict(),
            "plan": self.options.to_dict(),
            **machine,
        }
        write_json(self.path / "config.json", config)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Read a run's description.

        Raises:
            InputError: no run there, or its config.json is damaged or of another format.
        """
        file = path / "config.json"
        try:
            config = json.loads(file.read_text())
        except FileNotFoundError:
            raise InputError(f"{path}: no run here, there is no config.json in it") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be read: {error}") from error
        if not isinstance(config, dict) or config.get("format") != _FORMAT:
            raise InputError(f"{file}: not a run's description in format {_FORMAT}")
        try:
            return cls(
                path,
                Experiment.from_dict(config.get("experiment", {})),
                TrainConfig.from_dict(config.get("settings", {})),
                RunOptions.from_dict(config.get("plan", {})),
            )
        except InputError as error:
            raise InputError(f"{file}: {error}") from error

    @property
    def pictures(self) -> Path:
        """Folder of samples and traversals."""
        return self.path / "pictures"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def has_checkpoint(self) -> bool:
        """Return whether the run has written a checkpoint."""
        return bool(checkpoint.all_in(self.checkpoints))

    def newest_checkpoint(self) -> Path:
        """Return the newest checkpoint.

        Raises:
            InputError: there is none yet.
        """
        folders = checkpoint.all_in(self.checkpoints)
        if not folders:
            raise InputError(f"{self.path}: this run has no checkpoint yet")
        return folders[-1]

    def read_checkpoint(self, folder: Path | None = None) -> SavedState:
        """Read a checkpoint and check that it is this run's; the newest if none is named.

        Raises:
            InputError: there is none, it is damaged, or config.json describes another experiment
                or other settings than it was written under.
        """
        folder = folder or self.newest_checkpoint()
        found = checkpoint.load(folder)
        for part, here in self.identity().items():
            if differs := checkpoint.difference(here, found.state.get(part)):
                raise InputError(
                    f"{folder}: written by a run of another {part} than "
                    f"{self.path / 'config.json'} describes; {differs}"
                )
        iteration = found.state.get("iteration")
        if not isinstance(iteration, int):
            raise InputError(f"{folder}: state.json lacks its iteration")
        return SavedState(folder, found.tensors, iteration)

    def write_checkpoint(self, iteration: int, tensors: checkpoint.Tensors, keep: int) -> Path:
        """Write a checkpoint that says whose it is, and prune older ones.

        Raises:
            OSError: it could not be written; older ones are left.
        """
        state = {"iteration": iteration, **self.identity()}
        folder = checkpoint.save(self.checkpoints, iteration, Checkpoint(tensors, state))
        checkpoint.prune(self.checkpoints, keep)
        return folder

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must share with config.json."""
        return {"experiment": self.experiment.to_dict(), "settings": self.config.deciding()}

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Read metrics.jsonl, oldest line first, without those that a crash or a disk ruined."""
        try:
            content = (self.path / "metrics.jsonl").read_bytes()
        except FileNotFoundError:
            return
        for line in content.splitlines():
            try:
                found = json.loads(line)
            except ValueError:  # not JSON, or not even text
                continue
            if isinstance(found, dict) and isinstance(found.get("iteration"), int):
                yield found


class MetricsLog:
    """Writer of metrics.jsonl and, where TensorBoard is installed, of its events.

    Args:
        run: where.
        iteration: how many iterations the run has seen; later lines, left by a run that went on
            beyond its last checkpoint, are dropped.

    Attributes:
        events_missing: why no events are written, or None.

    Raises:
        OSError: they cannot be written.
    """

    def __init__(self, run: RunDirectory, iteration: int) -> None:
        lines = [line for line in run.metrics() if line["iteration"] <= iteration]
        self._file = run.path / "metrics.jsonl"
        self._torn = False
        write_text(self._file, "".join(json.dumps(line) + "\n" for line in lines))
        self.events_missing: str | None = None
        try:
            require("tensorboard", extra="train", purpose="logging to TensorBoard")
        except MissingPackageError as error:
            self._events, self.events_missing = None, str(error)
        else:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._events = SummaryWriter(str(run.path / "tensorboard"), purge_step=iteration + 1)

    def write(self, line: dict[str, float]) -> None:
        """Append a line; `iteration` is its place in time.

        Raises:
            OSError: it could not be written; the next one starts a line of its own.
        """
        text = json.dumps(line) + "\n"
        try:
            with self._file.open("a") as file:
                file.write("\n" + text if self._torn else text)
        except OSError:
            self._torn = True
            raise
        self._torn = False
        if self._events is not None:
            for name, value in line.items():
                if name != "iteration":
                    self._events.add_scalar(name, value, int(line["iteration"]))

    def close(self) -> None:
        """Flush the events.

        Raises:
            OSError: they could not be written.
        """
        if self._events is not None:
            self._events.close()
