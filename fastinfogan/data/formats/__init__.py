"""The dataset formats: one file each, which registers its `Format` when it is imported.

A new format is a file in this folder with `detect` and `read`, and a call of `register` at its end;
nothing else needs to change. Heavy libraries are imported inside `read`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.image_set import EncodedImageSet, ImageSet, ImageShape
from fastinfogan.errors import InputError

_registered: dict[str, "Format"] = {}


@dataclass(frozen=True)
class Format:
    """A dataset format.

    Attributes:
        name: of the format; unique.
        description: what to give as `data`, for error messages.
        detect: whether a path is of this format; cheap, and raises nothing on damaged files.
        read: reads a path that was detected, given the image shape of the experiment and what to
            do about damaged files and folders. Arrays of a fixed shape may ignore both. Raises
            InputError for a damaged file.
        priority: formats with a lower one are asked first.
    """

    name: str
    description: str
    detect: Callable[[Path], bool]
    read: Callable[[Path, ImageShape, OnBadImage], ImageSet | EncodedImageSet]
    priority: int = 50


def register(new: Format) -> None:
    """Add a format.

    Raises:
        ValueError: its name is taken.
    """
    if new.name in _registered:
        raise ValueError(f"{new.name!r} is registered already")
    _registered[new.name] = new


def all_formats() -> list[Format]:
    """Return the registered formats in the order in which they are asked."""
    _import_all()
    return sorted(_registered.values(), key=lambda each: each.priority)


@cache
def _import_all() -> None:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


def find_format(path: Path) -> Format | None:
    """Return the first format that detects a path."""
    return next((each for each in all_formats() if each.detect(path)), None)


def describe_formats() -> str:
    """Return what can be given as `data`, in one line."""
    *others, last = (each.description for each in all_formats())
    return f"{', '.join(others)} or {last}"


def read_path(
    path: Path, shape: ImageShape, on_bad_image: OnBadImage
) -> ImageSet | EncodedImageSet:
    """Read a path by the format that detects it; a folder may hold one file of a known format.

    Raises:
        InputError: no such path, no known format, or a damaged file.
    """
    found = find_format(path)
    if found:
        return found.read(path, shape, on_bad_image)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give {describe_formats()}")
    files = []
    if path.is_dir():
        files = [each for each in sorted(path.iterdir()) if each.is_file() and find_format(each)]
    if len(files) == 1:
        return read_path(files[0], shape, on_bad_image)
    if files:
        names = ", ".join(each.name for each in files)
        raise InputError(f"{path}: holds several image sets, {names}; give the path of one")
    what = "a folder of no known format, without images" if path.is_dir() else "of no known format"
    raise InputError(f"{path}: {what}; give {describe_formats()}")
