"""Trajectories, each kept in a file of its own as soon as it is done.

So a report that was interrupted goes on with the trajectory that it was at, and several processes
with the same folder share the work: each trajectory is trained by whoever locks its file first.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from bench.parity.sides import Setup, Side, trajectory
from fastinfogan.atomic_io import sync
from fastinfogan.checkpoint import difference
from fastinfogan.data.formats.npz import UNREADABLE
from fastinfogan.engine.environment import hardware
from fastinfogan.errors import InputError

SIDES: Final[tuple[Side, ...]] = get_args(Side)
REPORT, PICTURE = "parity.json", "parity.png"
_FORMAT = 1

Progress = Callable[[Side, int, int], None]
"""Told that a side, with a seed, has done so many iterations."""


@dataclass(frozen=True)
class Kept:
    """A trajectory that is on the disk.

    Attributes:
        values: fp64 (iterations, quantities); NaN where an iteration was skipped.
        machine: what it was trained on.
    """

    values: NDArray[np.float64]
    machine: dict[str, str]


class Folder:
    """Where a report's trajectories are.

    Args:
        path: made when the first of them is written.
        setup: what they are of.
        seeds: from 1 to this.

    Raises:
        InputError: the path is a file, or a folder with something else in it.
    """

    def __init__(self, path: Path, setup: Setup, seeds: int) -> None:
        self.path, self.setup = path, setup
        self._seeds = range(1, seeds + 1)
        self._fingerprints = {side: setup.fingerprint(side) for side in setup.sides}
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: a file, where a folder is needed; name another --out")
        strange = [p.name for p in path.iterdir() if not _is_ours(p)] if path.exists() else []
        if strange:
            raise InputError(
                f"{path}: holds files of something else, {min(strange)} for one; name another --out"
            )

    def fill(self, progress: Progress) -> dict[Side, list[Kept]]:
        """Train what is not there yet, or wait for the process that is training it.

        Returns:
            Of each side its trajectories, by seed.

        Raises:
            InputError: a file is damaged, or a trajectory of something else.
            OSError: the folder cannot be written.
        """
        sides = self.setup.sides
        tasks: list[tuple[Side, int]] = [(side, seed) for seed in self._seeds for side in sides]
        for side, seed in tasks:  # bad files are told before hours are spent
            if self._file(side, seed).exists():
                self._read(side, seed)
                progress(side, seed, self.setup.length(side))
        for wait in (False, True):
            for side, seed in tasks:
                self._train(side, seed, progress, wait=wait)
        return {side: [self._read(side, seed) for seed in self._seeds] for side in sides}

    def _train(self, side: Side, seed: int, progress: Progress, *, wait: bool) -> None:
        final = self._file(side, seed)
        if final.exists():
            progress(side, seed, self.setup.length(side))
            return
        self.path.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}.partial")
        with _locked(partial, wait=wait) as file:
            if file is None:
                return  # another process is at it
            if final.exists():  # it has just become so, by another process
                partial.unlink(missing_ok=True)
                progress(side, seed, self.setup.length(side))
                return
            values = trajectory(
                self.setup.start(side, seed),
                self.setup.length(side),
                len(self.setup.quantities),
                lambda done: progress(side, seed, done),
            )
            record: dict[str, Any] = {
                "side": side,
                "seed": seed,
                "quantities": self.setup.quantities,
            }
            record |= {"settings": self._fingerprints[side], "machine": hardware()}
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

    def _read(self, side: Side, seed: int) -> Kept:
        file = self._file(side, seed)
        again = "delete it to have it trained again, or name another --out"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                known = int(arrays["format"]) == _FORMAT
                record = json.loads(str(arrays["record"])) if known else {}
                values = arrays["values"].astype(np.float64)
        except UNREADABLE as error:
            raise InputError(f"{file}: not a whole trajectory: {error}; {again}") from error
        wanted: dict[str, Any] = {"side": side, "seed": seed, "quantities": self.setup.quantities}
        wanted["settings"] = self._fingerprints[side]
        machine = record.pop("machine", {})
        if differs := difference(record, wanted):
            raise InputError(f"{file}: a trajectory of other settings, {differs}; {again}")
        if values.shape != (self.setup.length(side), len(self.setup.quantities)):
            raise InputError(f"{file}: a trajectory of another shape; {again}")
        return Kept(values, machine)

    def _file(self, side: Side, seed: int) -> Path:
        return self.path / f"{side}-{seed}.npz"


def _is_ours(path: Path) -> bool:
    name = path.name
    if name.startswith("."):
        name = name.removeprefix(".").removesuffix(".partial")
    side, _, seed = name.removesuffix(".npz").partition("-")
    return name in (REPORT, PICTURE) or (side in SIDES and seed.isdecimal())


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[IO[bytes] | None]:
    """A file that is locked and opened for writing; None if another process has it."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file
