"""What a run leaves on disk, and reading it back.

config.json       experiment, settings, versions, hardware
metrics.jsonl     one line every few iterations
tensorboard/      the same as events
pictures/         samples and traversals
checkpoints/      iteration-000500, ...
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastinfogan import checkpoint
from fastinfogan.engine import environment
from fastinfogan.engine.settings import TrainingSettings
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment

_FORMAT = 1


class RunDirectory:
    """A run on disk.

    Attributes:
        path: the folder.
        experiment: what is trained there.
        settings: how.
    """

    def __init__(self, path: Path, experiment: Experiment, settings: TrainingSettings) -> None:
        self.path = path
        self.experiment = experiment
        self.settings = settings

    @classmethod
    def create(
        cls, path: Path, experiment: Experiment, settings: TrainingSettings
    ) -> "RunDirectory":
        """Start a run in a folder that is new or empty.

        Raises:
            InputError: something is there already, or the folder cannot be made.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            what = "another run" if (path / "config.json").exists() else "files"
            raise InputError(
                f"{path}: holds {what} already; name another --out, or --resume {path}"
            )
        run = cls(path, experiment, settings)
        config = {
            "format": _FORMAT,
            "experiment": experiment.to_dict(),
            "settings": settings.to_dict(),
            "versions": environment.versions(),
            "hardware": environment.hardware(),
        }
        try:
            run.pictures.mkdir(parents=True)
            run.checkpoints.mkdir()
            partial = path / "config.json.partial"
            partial.write_text(json.dumps(config, indent=1) + "\n")
            os.replace(partial, path / "config.json")
        except OSError as error:
            raise InputError(f"{path}: a run cannot be kept here: {error}") from error
        return run

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
                TrainingSettings.from_dict(config.get("settings", {})),
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

    def newest_checkpoint(self) -> Path:
        """The checkpoint to go on from.

        Raises:
            InputError: there is none yet.
        """
        folders = checkpoint.all_in(self.checkpoints)
        if not folders:
            raise InputError(f"{self.path}: this run has no checkpoint yet")
        return folders[-1]

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first."""
        try:
            text = (self.path / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return  # a line cut short by a crash; what follows a resume is written anew


class MetricsLog:
    """Appends metrics to metrics.jsonl and to TensorBoard's events.

    Args:
        run: where.
        iteration: how many iterations the run has seen; later lines, left by a run that went on
            beyond its last checkpoint, are dropped.
    """

    def __init__(self, run: RunDirectory, iteration: int) -> None:
        kept = [line for line in run.metrics() if line["iteration"] <= iteration]
        self._file = run.path / "metrics.jsonl"
        self._file.write_text("".join(json.dumps(line) + "\n" for line in kept))
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            self._events = None
        else:
            self._events = SummaryWriter(
                str(run.path / "tensorboard"), purge_step=iteration + 1 if iteration else None
            )

    def write(self, line: dict[str, float]) -> None:
        """Append a line; `iteration` is its place in time."""
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in line.items():
                if name != "iteration":
                    self._events.add_scalar(name, value, int(line["iteration"]))

    def close(self) -> None:
        """Flush the events."""
        if self._events is not None:
            self._events.close()
