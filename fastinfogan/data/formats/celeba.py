"""CelebA: img_align_celeba, with the lists of its partition and of its 40 attributes.

The lists are looked for beside the folder of images, as list_eval_partition.txt and
list_attr_celeba.txt or as Kaggle's .csv, and in Eval and Anno as in the original archive. Without
the first all images are for training, without the second there are no factors.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.formats import Format, register
from fastinfogan.data.image_set import CropResize, EncodedImageSet, Factors, ImageShape
from fastinfogan.data.listing import list_images, printable
from fastinfogan.errors import InputError

FOLDER = "img_align_celeba"
_CROP = (128, 128)  # of 218x178: the face
_LIST_FOLDERS = ("", "Eval", "Anno")
_TRAIN, _TEST = 0, 2  # 1 is for validation

Value = TypeVar("Value")


def _find(path: Path) -> Path | None:
    """Return the folder of images, if a path is it or holds it."""
    for place in (path.absolute(), path / FOLDER, path / "Img" / FOLDER):
        if place.name == FOLDER and place.is_dir():
            found = path if place == path.absolute() else place
            inner = found / FOLDER  # as Kaggle packs it
            return inner if inner.is_dir() else found
    return None


def detect(path: Path) -> bool:
    """Return whether a path is, or holds, img_align_celeba."""
    return _find(path) is not None


def read(path: Path, shape: ImageShape, on_bad_image: OnBadImage = "fail") -> EncodedImageSet:
    """List partition 0 for training and partition 2 as the test split.

    Attributes become factors of two classes. Partition 1 is left out.

    Raises:
        InputError: no images, a damaged list, or an image that a list lacks.
    """
    folder = _find(path) or path
    images = list_images(folder, on_bad_image)
    if not images:
        raise InputError(f"{folder}: no images in this folder")
    stems = [_stem(name) for name in images.names]
    partition = np.zeros(len(images), np.int64)
    file = _list(folder, "list_eval_partition")
    if file is not None:
        numbers = _partition(file)
        partition[:] = [_found(numbers, stem, file) for stem in stems]
    train, test = (np.flatnonzero(partition == part) for part in (_TRAIN, _TEST))
    if not len(train):
        raise InputError(f"{file}: none of {len(images)} images is in partition 0, for training")
    factors = None
    file = _list(folder, "list_attr_celeba")
    if file is not None:
        names, table = _attributes(file)
        values = np.stack([_found(table, stem, file) for stem in stems]).astype(np.float32)
        factors = Factors(names, values, (2,) * len(names), (None,) * len(names))

    def part(name: str, rows: NDArray[np.int64], test: EncodedImageSet | None) -> EncodedImageSet:
        known = replace(factors, values=factors.values[rows]) if factors else None
        transform = CropResize(shape, _CROP)
        return EncodedImageSet(name, images.take(rows), transform, None, test, known)

    return part(str(path), train, part(f"{path}, test", test, None) if len(test) else None)


def _list(folder: Path, name: str) -> Path | None:
    """Return the file of a list, near the folder of images."""
    bases = (folder.absolute().parent, folder.absolute().parent.parent, folder)
    places = itertools.product(bases, _LIST_FOLDERS, (f"{name}.txt", f"{name}.csv"))
    return next((file for file in itertools.starmap(Path, places) if file.is_file()), None)


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _found(table: Mapping[str, Value], stem: str, file: Path) -> Value:
    try:
        return table[stem]
    except KeyError:
        raise InputError(f"{file}: no line for the image {printable(stem)}") from None


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    return [line for line in text.replace(",", " ").splitlines() if line.strip()]


def _partition(file: Path) -> dict[str, int]:
    numbers = {}
    for place, line in enumerate(_lines(file)):
        if place == 0 and line.split() == ["image_id", "partition"]:
            continue
        image, *rest = line.split()
        if rest not in (["0"], ["1"], ["2"]):
            raise InputError(
                f"{file}: each line must be an image and 0, 1 or 2, not {printable(line[:40])!r}"
            )
        numbers[_stem(image)] = int(rest[0])
    return numbers


def _attributes(file: Path) -> tuple[tuple[str, ...], dict[str, NDArray[np.uint8]]]:
    """Return the names of the attributes, and for each image their values: uint8, 0 or 1."""
    lines = _lines(file)
    announced = None
    if lines and lines[0].strip().isdigit():
        announced = int(lines.pop(0))
    names = lines[0].split() if lines else []
    if names[:1] == ["image_id"]:
        del names[0]
    del lines[:1]
    if not names or len(set(names)) != len(names) or (announced or len(lines)) != len(lines):
        raise InputError(
            f"{file}: not a complete list of attributes, {len(names)} of them for {len(lines)} "
            f"images{f', where {announced} are announced' if announced is not None else ''}"
        )
    table = {}
    for line in lines:
        image, *values = line.split(maxsplit=1)
        # 1 and -1, and nothing else, one for each name.
        digits = "".join(values).replace("-1", "0").split()
        if len(digits) != len(names) or not {"0", "1"}.issuperset(digits):
            raise InputError(
                f"{file}: each line must be an image and {len(names)} times 1 or -1, "
                f"not {printable(line[:40])!r}"
            )
        table[_stem(image)] = np.frombuffer("".join(digits).encode(), np.uint8) - ord("0")
    return tuple(names), table


register(Format("CelebA", "CelebA's img_align_celeba", detect, read, priority=30))
