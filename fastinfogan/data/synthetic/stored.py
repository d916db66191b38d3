"""Rendered sets on disk: an .npy file that is mapped, and the fingerprint of its images."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from fastinfogan.data.image_set import Fingerprint, ImageSet
from fastinfogan.data.synthetic.scene import Pixels, Scene
from fastinfogan.files import cache_directory, replacing, write_json

VERSION: Final = 1
"""Of the scenes' appearance: to be increased with every change, so that no old set is read."""


def path_of(scene: Scene, seed: int, splits: tuple[int, int]) -> Path:
    """Return the file of a set's images."""
    name = f"{scene.name}-v{VERSION}-seed{seed}-{splits[0]}+{splits[1]}.npy"
    return cache_directory() / "rendered" / name


def read(scene: Scene, seed: int, splits: tuple[int, int]) -> Pixels | None:
    """Map the images of a set; None if the file is missing or damaged."""
    file = path_of(scene, seed, splits)
    try:
        images = _map(file)
        recorded = json.loads(file.with_suffix(".json").read_text())
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        return None
    if images.shape != (sum(splits), *scene.shape) or recorded != _fingerprint(images):
        return None
    return images


def write(scene: Scene, seed: int, splits: tuple[int, int], images: Pixels) -> Pixels:
    """Store the images of a set; if that fails, the next start renders them again.

    Returns:
        The images, mapped if they could be stored.
    """
    file = path_of(scene, seed, splits)
    with suppress(OSError):
        with replacing(file) as partial, partial.open("wb") as opened:
            np.save(opened, images, allow_pickle=False)
        write_json(file.with_suffix(".json"), _fingerprint(images))
        return _map(file)
    return images


def _map(file: Path) -> Pixels:
    # Copy on write: torch does not accept read-only arrays.
    images: Pixels = np.load(file, mmap_mode="c", allow_pickle=False)
    return images


def _fingerprint(images: Pixels) -> Fingerprint:
    return ImageSet("", images).fingerprint
