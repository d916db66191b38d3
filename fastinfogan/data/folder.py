"""Any folder of pictures, its subfolders included, in the order of their names."""

import os
from pathlib import Path

from fastinfogan.data.source import Encoded, ImageShape, Picture, Recipe
from fastinfogan.errors import InputError

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)


def read(path: Path, shape: ImageShape) -> Encoded:
    """List every picture: its largest centred box of the right proportions becomes the image.

    Folders that are links are followed, each place once on the way down to it.

    Raises:
        InputError: no pictures, or a folder that cannot be read.
    """
    pictures: list[Picture] = []
    _list(path, "", (), pictures)
    if not pictures:
        raise InputError(
            f"{path}: no pictures in this folder (looked for {', '.join(sorted(SUFFIXES))})"
        )
    # By the parts of the path, as the folders lie in each other: the same on every machine.
    pictures.sort(key=lambda picture: picture.name.split("/"))
    return Encoded(str(path), pictures, Recipe(shape))


def _list(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...], pictures: list[Picture]
) -> None:
    try:
        place = os.stat(folder)
        if (identity := (place.st_dev, place.st_ino)) in above:
            return  # a link to a folder that it lies in
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_symlink() and not os.path.exists(entry.path):
                    continue  # a link that leads nowhere, or to itself
                if entry.is_dir():
                    _list(Path(entry.path), f"{prefix}{entry.name}/", (*above, identity), pictures)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                    size = entry.stat().st_size
                    pictures.append(Picture(prefix + entry.name, Path(entry.path), 0, size))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror or error}") from error
