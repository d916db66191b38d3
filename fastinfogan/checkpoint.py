"""Write and read checkpoints: tensors in safetensors, the rest in JSON, nothing pickled.

A checkpoint is a folder `iteration-000600`. It is written under another name, every file is
synced, a manifest with each file's SHA-256 comes last, and only then is the folder renamed: what
has its final name is whole, and one flipped byte in it is found when it is read.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastinfogan.errors import InputError
from fastinfogan.files import sync

_MANIFEST = "manifest.json"
_STATE = "state.json"
_NAME = re.compile(r"iteration-([0-9]+)")
_PARTIAL = ".partial-"

Tensors = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        tensors: by file ("weights", "optimizer", ...), then by name.
        state: everything else, as JSON has it.
    """

    tensors: Tensors
    state: dict[str, Any]


def save(parent: Path, iteration: int, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint whole, or not at all.

    Args:
        parent: the folder of a run's checkpoints.
        iteration: how many iterations the state has seen; names the folder.
        checkpoint: what to write; tensors from any device.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: the disk is full or read-only; the partial checkpoint is removed.
    """
    final = parent / f"iteration-{iteration:06d}"
    partial = parent / f"{_PARTIAL}{final.name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, tensors in checkpoint.tensors.items():
            plain = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
            try:
                save_file(plain, partial / f"{name}.safetensors")
            except SafetensorError as error:
                raise OSError(f"{partial}: {error}") from error
        (partial / _STATE).write_text(json.dumps(checkpoint.state, indent=1))
        sums = {file.name: _sha256(file) for file in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps(sums, indent=1))
        for file in [*partial.iterdir(), partial]:
            sync(file)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync(parent)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint and check every byte of it.

    Raises:
        InputError: a file is missing, unreadable or not as it was written.
    """
    manifest = folder / _MANIFEST
    fallback = "delete that folder to go back to the checkpoint before it"
    try:
        sums = json.loads(manifest.read_text())
        if _STATE not in sums:
            raise InputError(f"{manifest}: names no {_STATE}; {fallback}")
        for name, expected in sums.items():
            if _sha256(folder / name) != expected:
                raise InputError(
                    f"{folder / name}: damaged, its SHA-256 is not the manifest's; {fallback}"
                )
        tensors = {Path(name).stem: load_file(folder / name) for name in sums if name != _STATE}
        return Checkpoint(tensors, json.loads((folder / _STATE).read_text()))
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: not a whole checkpoint: {error}; {fallback}") from error


def identity(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's manifest, which determines all that it holds.

    Raises:
        InputError: the manifest cannot be read.
    """
    try:
        return _sha256(folder / _MANIFEST)
    except OSError as error:
        raise InputError(f"{folder}: not a whole checkpoint: {error}") from error


def all_in(parent: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, by iteration; other files are ignored."""
    found = []
    for folder in parent.iterdir() if parent.is_dir() else ():
        name = _NAME.fullmatch(folder.name)
        if name and folder.is_dir():
            found.append((int(name[1]), folder.name, folder))
    return [folder for *_, folder in sorted(found)]


def difference(one: Any, other: Any, where: str = "") -> str | None:  # noqa: ANN401 - JSON
    """Return the first place in which two JSON values differ; None if they are equal.

    Returns:
        Where and how in a few words, as in "trunk.0.channels: 64 and 65".
    """
    one, other = json.loads(json.dumps(one)), json.loads(json.dumps(other))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(k for k in other if k not in one)]:
            place = f"{where}.{key}" if where else str(key)
            if key not in one or key not in other:
                return f"{place}: there in one of them alone"
            if found := difference(one[key], other[key], place):
                return found
        return None
    return None if one == other else f"{where}: {_short(one)} and {_short(other)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:56]} ..."


def prune(parent: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for folder in all_in(parent)[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


def fit(tensors: dict[str, Tensor], into: dict[str, Tensor], where: Path | str) -> None:
    """Copy named tensors into others in place; names, shapes and dtypes must be the same.

    Raises:
        InputError: they are not; nothing was copied.
    """
    if missing := sorted(into.keys() - tensors.keys()):
        raise InputError(f"{where}: lacks {len(missing)} tensors, the first is {missing[0]}")
    if unknown := sorted(tensors.keys() - into.keys()):
        raise InputError(
            f"{where}: has {len(unknown)} tensors of no use, the first is {unknown[0]}"
        )
    for name, target in into.items():
        found = tensors[name]
        if found.shape != target.shape or found.dtype != target.dtype:
            raise InputError(
                f"{where}: {name} is {found.dtype} {tuple(found.shape)}, "
                f"{target.dtype} {tuple(target.shape)} is needed"
            )
    with torch.no_grad():
        for name, target in into.items():
            target.copy_(tensors[name])


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
