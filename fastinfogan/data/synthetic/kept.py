"""Where rendered sets are kept: an .npy that is mapped, and beside it what it must hash to."""

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from fastinfogan.data.image_set import ImageSet
from fastinfogan.data.synthetic.scene import Pixels, Scene
from fastinfogan.paths import cache_directory

VERSION: Final = 1
"""Of what the scenes look like: counted up with every change, lest an old set be read."""


def place(scene: Scene, seed: int, parts: tuple[int, int]) -> Path:
    """The file of a set's images."""
    name = f"{scene.name}-v{VERSION}-seed{seed}-{parts[0]}+{parts[1]}.npy"
    return cache_directory() / "rendered" / name


def read(scene: Scene, seed: int, parts: tuple[int, int]) -> Pixels | None:
    """The images as they were written, mapped; None if they are not there or not whole."""
    file = place(scene, seed, parts)
    try:
        images = _mapped(file)
        recorded = json.loads(file.with_suffix(".json").read_text())
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        return None
    if images.shape != (sum(parts), *scene.shape) or recorded != _fingerprint(images):
        return None
    return images


def write(scene: Scene, seed: int, parts: tuple[int, int], images: Pixels) -> Pixels:
    """Keep images; a read-only home or a full disk costs the next start time, nothing else.

    Returns:
        Them, mapped if they could be kept.
    """
    file = place(scene, seed, parts)
    partial = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        record = json.dumps(_fingerprint(images))
        for target in (file, file.with_suffix(".json")):
            with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as opened:
                partial = Path(opened.name)
                if target == file:
                    np.save(opened, images, allow_pickle=False)
                else:
                    opened.write(record.encode())
            os.replace(partial, target)
        return _mapped(file)
    except OSError:
        if partial:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return images


def _mapped(file: Path) -> Pixels:
    # Copy on write: torch does not take arrays that cannot be written.
    images: Pixels = np.load(file, mmap_mode="c", allow_pickle=False)
    return images


def _fingerprint(images: Pixels) -> dict[str, str]:
    return ImageSet("", images).fingerprint
