"""CelebA: img_align_celeba, with the lists of its partition and of its 40 attributes.

The lists may lie beside the folder of pictures, as list_eval_partition.txt and list_attr_celeba.txt
or as Kaggle's .csv, or in Eval and Anno as they are handed out. Without the first every picture is
learned from, without the second nothing is known of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.decoders.geometry import recipe
from fastinfogan.data.image_set import EncodedImageSet, Factors, ImageShape
from fastinfogan.data.listing import FileListing, list_images, printable
from fastinfogan.errors import InputError

FOLDER = "img_align_celeba"
_PLACES = ("", "Eval", "Anno")
_LEARN, _TEST = 0, 2  # 1 is for validation

Value = TypeVar("Value")


def find(path: Path) -> Path | None:
    """The folder of pictures, if a path is it or holds it."""
    for place in (path.absolute(), path / FOLDER, path / "Img" / FOLDER):
        if place.name == FOLDER and place.is_dir():
            found = path if place == path.absolute() else place
            inner = found / FOLDER  # as Kaggle packs it
            return inner if inner.is_dir() else found
    return None


def read(path: Path, shape: ImageShape, damaged: OnBadImage = "fail") -> EncodedImageSet:
    """List the pictures of partition 0, and as the test part those of partition 2.

    Attributes become factors of two classes. The pictures of partition 1 are left out.

    Args:
        path: the folder of pictures, or one that holds it.
        shape: of the images.
        damaged: whether subfolders that cannot be read are left out.

    Raises:
        InputError: no pictures, a damaged list, or a picture that a list does not have.
    """
    folder = find(path) or path
    pictures = list_images(folder, damaged)
    if not pictures:
        raise InputError(f"{folder}: no pictures in this folder")
    stems = [_stem(name) for name in pictures.names]
    partition = np.zeros(len(pictures), np.int64)
    file = _list(folder, "list_eval_partition")
    if file is not None:
        numbers = _partition(file)
        partition[:] = [_found(numbers, stem, file) for stem in stems]
    learn, test = (np.flatnonzero(partition == part) for part in (_LEARN, _TEST))
    if not len(learn):
        raise InputError(
            f"{file}: none of {len(pictures)} pictures is of partition 0, for training"
        )
    factors = None
    known = _list(folder, "list_attr_celeba")
    if known is not None:
        names, table = _attributes(known)
        values = np.stack([_found(table, stem, known) for stem in stems])
        factors = _Known(names, values)
    held_out = _part(f"{path}, test", pictures, test, shape, factors) if len(test) else None
    return _part(str(path), pictures, learn, shape, factors, held_out)


@dataclass(frozen=True)
class _Known:
    """What the list of attributes tells of all pictures.

    Attributes:
        names: of the attributes.
        values: uint8 (N, attributes), 0 or 1.
    """

    names: tuple[str, ...]
    values: NDArray[np.uint8]


def _part(
    name: str,
    pictures: FileListing,
    rows: NDArray[np.int64],
    shape: ImageShape,
    known: _Known | None,
    test: EncodedImageSet | None = None,
) -> EncodedImageSet:
    factors = None
    if known is not None:
        count = len(known.names)
        values = known.values[rows].astype(np.float32)
        factors = Factors(known.names, values, (2,) * count, (None,) * count)
    return EncodedImageSet(name, pictures.take(rows), recipe("celeba", shape), None, test, factors)


def _list(folder: Path, name: str) -> Path | None:
    """One of the lists, near to the folder of pictures."""
    for base in (folder.absolute().parent, folder.absolute().parent.parent, folder):
        for place in _PLACES:
            for suffix in (".txt", ".csv"):
                file = base / place / (name + suffix)
                if file.is_file():
                    return file
    return None


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _found(table: Mapping[str, Value], stem: str, file: Path) -> Value:
    try:
        return table[stem]
    except KeyError:
        raise InputError(f"{file}: no line for the picture {printable(stem)}") from None


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
        picture, *rest = line.split()
        if rest not in (["0"], ["1"], ["2"]):
            raise InputError(
                f"{file}: a picture and 0, 1 or 2 are on every line, not {printable(line[:40])!r}"
            )
        numbers[_stem(picture)] = int(rest[0])
    return numbers


def _attributes(file: Path) -> tuple[tuple[str, ...], dict[str, NDArray[np.uint8]]]:
    """The names of the attributes, and by picture 0 or 1 for each."""
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
            f"{file}: not a whole list of attributes, {len(names)} of them for {len(lines)} "
            f"pictures{f', where {announced} are announced' if announced is not None else ''}"
        )
    table = {}
    for line in lines:
        picture, *values = line.split(maxsplit=1)
        # 1 and -1, and nothing else, one for each name.
        digits = "".join(values).replace("-1", "0").split()
        if len(digits) != len(names) or not {"0", "1"}.issuperset(digits):
            raise InputError(
                f"{file}: a picture and {len(names)} times 1 or -1 are on every line, "
                f"not {printable(line[:40])!r}"
            )
        table[_stem(picture)] = np.frombuffer("".join(digits).encode(), np.uint8) - ord("0")
    return tuple(names), table
