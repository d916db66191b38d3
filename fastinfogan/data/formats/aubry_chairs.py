"""The rendered chairs of Aubry et al. 2014: rendered_chairs/MODEL/renders/image_*_p*_t*_r*.png."""

import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.formats import Format, register
from fastinfogan.data.image_set import CropResize, EncodedImageSet, Factors, ImageShape
from fastinfogan.data.listing import list_images, printable
from fastinfogan.errors import InputError

FOLDER = "rendered_chairs"
# Of 600x600; the outer 100 pixels are margin.
_CROP = (400, 400)
_NAME = re.compile(r"([^/]+)/renders/image_\d+_p(\d{1,3})_t(\d{1,3})_r\d+\.png")


def _find(path: Path) -> Path | None:
    """Return the folder of models, if a path is it or holds it."""
    for place in (path, path / FOLDER):
        with suppress(OSError), os.scandir(place) as found:
            if any(entry.is_dir() and (place / entry.name / "renders").is_dir() for entry in found):
                return place
    return None


def detect(path: Path) -> bool:
    """Return whether a path is, or holds, a folder of models."""
    return _find(path) is not None


def read(path: Path, shape: ImageShape, on_bad_image: OnBadImage = "fail") -> EncodedImageSet:
    """List the renders; model, elevation and azimuth are their factors.

    "skip" leaves out images of other names, and folders that cannot be read.

    Raises:
        InputError: no renders, or an image of another name.
    """
    folder = _find(path) or path
    every = list_images(folder, on_bad_image)
    rows, models, angles = [], [], []
    for row, name in enumerate(every.names):
        parsed = _NAME.fullmatch(name)
        if parsed:
            rows.append(row)
            models.append(parsed[1])
            angles.append((float(parsed[2]), float(parsed[3])))
        elif on_bad_image == "fail":
            raise InputError(
                f"{folder}: {printable(name)} is not named as rendered chairs are, "
                "MODEL/renders/image_000_p020_t011_r096.png; remove it, or rename the "
                "folders to read the set as a folder of images"
            )
    if not rows:
        raise InputError(f"{folder}: no rendered chairs in this folder")
    names, numbers = np.unique(models, return_inverse=True)
    values = np.column_stack([numbers, np.array(angles)]).astype(np.float32)
    factors = Factors(
        ("model", "elevation", "azimuth"), values, (len(names), None, None), (None, None, 360.0)
    )
    return EncodedImageSet(str(path), every.take(rows), CropResize(shape, _CROP), factors=factors)


register(Format("rendered chairs", "rendered_chairs", detect, read, priority=40))
