"""Trajectories, each in its file as soon as it is trained: an interrupted report resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from bench.parity.configs import Config, Setup
from fastinfogan.checkpoint import difference
from fastinfogan.data.formats.npz import UNREADABLE
from fastinfogan.engine.config import hardware
from fastinfogan.errors import InputError
from fastinfogan.files import replacing

CONFIGS: Final[tuple[Config, ...]] = get_args(Config)
REPORT, PICTURE = "parity.json", "parity.png"
_AGAIN: Final = "delete it to have it trained again, or name another `out`"

Values = NDArray[np.float64]
"""Trajectories: (seeds, iterations, quantities); NaN where an iteration was skipped."""
Progress = Callable[[int, int, str], object]
"""Called with iterations done, of how many in all, and what is trained."""
Record = dict[str, Any]
"""What a trajectory was trained with; JSON."""


def train_missing(
    path: Path, setup: Setup, seeds: int, progress: Progress
) -> tuple[dict[Config, Values], list[dict[str, str]]]:
    """Train the trajectories that a folder does not hold yet.

    Args:
        path: of the folder; made when the first trajectory is written.
        setup: what is trained.
        seeds: from 1 to this.
        progress: called after each iteration.

    Returns:
        Trajectories by configuration, and the machines that they were trained on.

    Raises:
        InputError: the folder holds something else, a damaged file, or a trajectory of something
            else.
        OSError: the folder cannot be written.
    """
    _check_folder(path)
    numbers = range(1, seeds + 1)
    expected = {
        (config, seed): {
            "config": config,
            "seed": seed,
            "quantities": setup.quantities,
            "settings": setup.fingerprint(config),
        }
        for seed in numbers
        for config in setup.configs
    }
    found = {  # bad files are reported before hours are spent
        key: _checked(_file(path, *key), setup.length(key[0]), record)
        for key, record in expected.items()
        if _file(path, *key).exists()
    }
    done, total = 0, sum(setup.length(config) for config, _ in expected)
    for (config, seed), record in expected.items():
        length, text = setup.length(config), f"{config}, seed {seed}"
        if (config, seed) not in found:

            def on_iteration(number: int, done: int = done, text: str = text) -> None:
                progress(done + number, total, text)

            values, file = _train(setup, config, seed, on_iteration), _file(path, config, seed)
            record |= {"machine": hardware()}
            with replacing(file) as partial, partial.open("wb") as stream:
                np.savez_compressed(stream, record=np.array(json.dumps(record)), values=values)
            found[config, seed] = _load(file)
        done += length
        progress(done, total, text)
    machines = [found[key][1].get("machine", {}) for key in expected]
    values_of = {c: np.stack([found[c, seed][0] for seed in numbers]) for c in setup.configs}
    return values_of, [m for i, m in enumerate(machines) if m not in machines[:i]]


def read_saved(path: Path) -> dict[Config, Values]:
    """Read the trajectories of a finished report's folder by configuration, whatever their code.

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


def _train(
    setup: Setup, config: Config, seed: int, on_iteration: Callable[[int], None]
) -> NDArray[np.float32]:
    """Run iterations until all are done, or three in a row were not finite: nothing comes after.

    Returns:
        (iterations, quantities) in what losses are computed in; NaN where an iteration was skipped
        or not run.
    """
    step, length = setup.start(config, seed), setup.length(config)
    found = np.full((length, len(setup.quantities)), np.nan)
    not_finite = 0
    for number in range(length):
        found[number] = step(number)
        not_finite = 0 if np.isfinite(found[number]).all() else not_finite + 1
        if not_finite == 3:
            break
        on_iteration(number + 1)
    return found.astype(np.float32)


def _file(path: Path, config: Config, seed: int) -> Path:
    return path / f"{config}-{seed}.npz"


def _load(file: Path) -> tuple[Values, Record]:
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["values"].astype(np.float64), json.loads(str(arrays["record"]))


def _checked(file: Path, length: int, expected: Record) -> tuple[Values, Record]:
    """Read a trajectory of a length that was trained with what is expected."""
    try:
        values, record = _load(file)
    except UNREADABLE as error:
        raise InputError(f"{file}: not a whole trajectory: {error}; {_AGAIN}") from error
    trained = {name: value for name, value in record.items() if name != "machine"}
    if differs := difference(trained, expected):
        raise InputError(f"{file}: a trajectory of other settings, {differs}; {_AGAIN}")
    if values.shape != (length, len(expected["quantities"])):
        raise InputError(f"{file}: a trajectory of another shape; {_AGAIN}")
    return values, record


def _check_folder(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: a file, where a folder is needed; name another `out`")
    known = [REPORT, PICTURE, *(f.name for c in CONFIGS for f in path.glob(f"{c}-[0-9]*.npz"))]
    others = [p.name for p in path.iterdir() if p.name not in known and p.suffix != ".partial"]
    if others:
        raise InputError(
            f"{path}: holds files of something else, {min(others)} for one; name another `out`"
        )
