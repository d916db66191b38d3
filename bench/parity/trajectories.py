"""Trajectories, each in a file of its own as soon as it is trained.

A report that was interrupted therefore resumes, and several processes with the same folder share
the work: each trajectory is trained by the process that locks its file first.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from bench.parity.configs import Config, Setup, trajectory
from fastinfogan.checkpoint import difference
from fastinfogan.data.formats.npz import UNREADABLE
from fastinfogan.engine.config import hardware
from fastinfogan.errors import InputError
from fastinfogan.files import sync

CONFIGS: Final[tuple[Config, ...]] = get_args(Config)
REPORT, PICTURE = "parity.json", "parity.png"
_FORMAT = 1

Values = NDArray[np.float64]
"""Trajectories: (seeds, iterations, quantities); NaN where an iteration was skipped."""
Progress = Callable[[int, int, str], object]
"""Called with iterations done, of how many in all, and what is trained."""


class Folder:
    """The folder of a report's trajectories.

    Args:
        path: made when the first trajectory is written.
        setup: what they are of.
        seeds: from 1 to this.

    Raises:
        InputError: the path is a file, or a folder with something else in it.
    """

    def __init__(self, path: Path, setup: Setup, seeds: int) -> None:
        self.path, self.setup = path, setup
        self._seeds = range(1, seeds + 1)
        self._fingerprints = {config: setup.fingerprint(config) for config in setup.configs}
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: a file, where a folder is needed; name another `out`")
        strange = [p.name for p in path.iterdir() if not _is_known(p)] if path.exists() else []
        if strange:
            raise InputError(
                f"{path}: holds files of something else, {min(strange)} for one; name another `out`"
            )

    def fill(self, progress: Progress) -> tuple[dict[Config, Values], list[dict[str, str]]]:
        """Train the missing trajectories, or wait for the processes that are training them.

        Returns:
            Trajectories by configuration, and the machines that they were trained on.

        Raises:
            InputError: a file is damaged, or a trajectory of something else.
            OSError: the folder cannot be written.
        """
        tasks = [(config, seed) for seed in self._seeds for config in self.setup.configs]
        for config, seed in tasks:  # bad files are reported before hours are spent
            if self._file(config, seed).exists():
                self._read(config, seed)
        total = sum(self.setup.length(config) for config, _ in tasks)
        for wait in (False, True):
            done = 0
            for config, seed in tasks:
                self._train(config, seed, progress, done, total, wait=wait)
                done += self.setup.length(config)
        found = {config: [self._read(config, seed) for seed in self._seeds]
                 for config in self.setup.configs}  # fmt: skip
        machines = [machine for read in found.values() for _, machine in read]
        values = {config: np.stack([v for v, _ in read]) for config, read in found.items()}
        return values, [m for i, m in enumerate(machines) if m not in machines[:i]]

    def _train(
        self, config: Config, seed: int, progress: Progress, done: int, total: int, *, wait: bool
    ) -> None:
        final, length = self._file(config, seed), self.setup.length(config)
        text = f"{config}, seed {seed}"
        if final.exists():
            progress(done + length, total, text)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}.partial")
        with _locked(partial, wait=wait) as file:
            if file is None:
                return  # another process trains it
            if final.exists():  # another process has just finished it
                partial.unlink(missing_ok=True)
                return
            values = trajectory(
                self.setup.start(config, seed),
                length,
                len(self.setup.quantities),
                lambda iterations: progress(done + iterations, total, text),
            )
            record = self._record(config, seed) | {"machine": hardware()}
            file.truncate(0)
            np.savez_compressed(
                file,
                format=np.array(_FORMAT),
                record=np.array(json.dumps(record)),
                values=values.numpy().astype(np.float32),  # what the losses are computed in
            )
            file.flush()
            sync(partial)
            os.replace(partial, final)
            sync(self.path)

    def _record(self, config: Config, seed: int) -> dict[str, Any]:
        return {
            "side": config,
            "seed": seed,
            "quantities": self.setup.quantities,
            "settings": self._fingerprints[config],
        }

    def _read(self, config: Config, seed: int) -> tuple[Values, dict[str, str]]:
        file = self._file(config, seed)
        again = "delete it to have it trained again, or name another `out`"
        try:
            values, record = _load(file)
        except UNREADABLE as error:
            raise InputError(f"{file}: not a whole trajectory: {error}; {again}") from error
        machine: dict[str, str] = record.pop("machine", {})
        if differs := difference(record, self._record(config, seed)):
            raise InputError(f"{file}: a trajectory of other settings, {differs}; {again}")
        if values.shape != (self.setup.length(config), len(self.setup.quantities)):
            raise InputError(f"{file}: a trajectory of another shape; {again}")
        return values, machine

    def _file(self, config: Config, seed: int) -> Path:
        return self.path / f"{config}-{seed}.npz"


def read_saved(path: Path) -> dict[Config, Values]:
    """Read a finished report's trajectories, whatever code has trained them.

    Args:
        path: the report's folder.

    Returns:
        Trajectories by configuration.

    Raises:
        InputError: a file is missing or damaged.
    """
    found: dict[Config, Values] = {}
    for config in CONFIGS:
        files = sorted(path.glob(f"{config}-*.npz"), key=lambda f: int(f.stem.rpartition("-")[2]))
        try:
            if files:
                found[config] = np.stack([_load(file)[0] for file in files])
        except UNREADABLE as error:
            raise InputError(f"{path}: {config} has no whole trajectories: {error}") from error
    if not {"reference", "engine", "rounded"} <= found.keys():
        raise InputError(f"{path}: no trajectories of a report")
    return found


def _load(file: Path) -> tuple[Values, dict[str, Any]]:
    with np.load(file, allow_pickle=False) as arrays:
        known = int(arrays["format"]) == _FORMAT
        return arrays["values"].astype(np.float64), (
            json.loads(str(arrays["record"])) if known else {}
        )


def _is_known(path: Path) -> bool:
    name = path.name
    if name.startswith("."):
        name = name.removeprefix(".").removesuffix(".partial")
    config, _, seed = name.removesuffix(".npz").partition("-")
    return name in (REPORT, PICTURE) or (config in CONFIGS and seed.isdecimal())


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[IO[bytes] | None]:
    """Open a file for writing and lock it; None if another process has it."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file
