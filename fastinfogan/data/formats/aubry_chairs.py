"""The rendered chairs of Aubry et al. 2014: rendered_chairs/MODEL/renders/image_*_p*_t*_r*.png."""

import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.decoders.geometry import recipe
from fastinfogan.data.image_set import EncodedImageSet, Factors, ImageShape
from fastinfogan.data.listing import list_images, printable
from fastinfogan.errors import InputError

FOLDER = "rendered_chairs"
_NAME = re.compile(r"([^/]+)/renders/image_\d+_p(\d{1,3})_t(\d{1,3})_r\d+\.png")


def find(path: Path) -> Path | None:
    """The folder of models, if a path is it or holds it."""
    for place in (path, path / FOLDER):
        with suppress(OSError), os.scandir(place) as found:
            if any(entry.is_dir() and (place / entry.name / "renders").is_dir() for entry in found):
                return place
    return None


def read(path: Path, shape: ImageShape, damaged: OnBadImage = "fail") -> EncodedImageSet:
    """List the renders; which model, how high the camera and how far round are their factors.

    Args:
        path: the folder of models, or one that holds it.
        shape: of the images.
        damaged: whether pictures that are named otherwise, and folders that cannot be read, are
            left out.

    Raises:
        InputError: no renders, or a picture that is named otherwise.
    """
    folder = find(path) or path
    every = list_images(folder, damaged)
    rows, models, angles = [], [], []
    for row, name in enumerate(every.names):
        parsed = _NAME.fullmatch(name)
        if parsed:
            rows.append(row)
            models.append(parsed[1])
            angles.append((float(parsed[2]), float(parsed[3])))
        elif damaged == "fail":
            raise InputError(
                f"{folder}: {printable(name)} is not named as rendered chairs are, "
                "MODEL/renders/image_000_p020_t011_r096.png; remove it, or take the set as a "
                "folder of pictures by another name than renders"
            )
    if not rows:
        raise InputError(f"{folder}: no rendered chairs in this folder")
    names, numbers = np.unique(models, return_inverse=True)
    values = np.column_stack([numbers, np.array(angles)]).astype(np.float32)
    factors = Factors(
        ("model", "elevation", "azimuth"), values, (len(names), None, None), (None, None, 360.0)
    )
    return EncodedImageSet(str(path), every.take(rows), recipe("chairs", shape), factors=factors)
