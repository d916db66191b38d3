"""WebDataset's shards: tar files of pictures, each with what is known of it beside it.

A sample is what has one name up to the first point: 000123.jpg, 000123.cls. A .cls is a whole
number; a .json is one, or has it as "label", "cls" or "class". Pictures are found by their place in
the tar, which is never unpacked.
"""

import itertools
import json
import re
import tarfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.decoders.geometry import recipe
from fastinfogan.data.image_set import EncodedImageSet, ImageShape
from fastinfogan.data.listing import FileListing, is_picture, printable
from fastinfogan.errors import InputError

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_BLOCK: Final = 512
_MAX_LABEL: Final = 1 << 20  # bytes
_MAX_SHARDS: Final = 100_000
_LABEL_KEYS: Final = ("label", "cls", "class")


class _DamagedError(Exception):
    """A tar goes on, and cannot be read any further."""


class _Index:
    """What was found in the tars so far."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sizes: list[int] = []
        self.holders: list[int] = []
        self.offsets: list[int] = []
        self.samples: list[tuple[int, str]] = []
        self.labels: dict[tuple[int, str], int] = {}


def shards(path: Path) -> list[Path] | None:
    """The tars that a path stands for: itself, a folder's, or those of a pattern with braces.

    shard-{000..009}.tar and {train,extra}.tar are patterns. None if the path is nothing of this.

    Raises:
        InputError: a pattern names more than 100,000 files.
    """
    if path.is_dir():
        return sorted(path.glob("*.tar")) or None
    if path.suffix != ".tar":
        return None
    if path.exists() or not _BRACES.search(str(path)):
        return [path]
    pieces, end = [], 0
    for found in _BRACES.finditer(str(path)):
        pieces.append([str(path)[end : found.start()]])
        end = found.end()
        if found[3] is not None:
            pieces.append(found[3].split(","))
            continue
        first, last = int(found[1]), int(found[2])
        if last < first or last - first >= _MAX_SHARDS:
            raise InputError(f"{path}: {found[0]} counts from the lesser to the greater number")
        pieces.append([f"{n:0{len(found[1])}d}" for n in range(first, last + 1)])
    pieces.append([str(path)[end:]])
    count = np.prod([len(piece) for piece in pieces], dtype=object)
    if count > _MAX_SHARDS:
        raise InputError(f"{path}: stands for {count:,} files; at most {_MAX_SHARDS:,} are opened")
    return [Path("".join(parts)) for parts in itertools.product(*pieces)]


def read(
    path: Path, files: list[Path], shape: ImageShape, damaged: OnBadImage = "fail"
) -> EncodedImageSet:
    """List the pictures of tars, and their labels if every one has its own.

    Args:
        path: as the user named them.
        files: the tars, in their order.
        shape: of the images.
        damaged: "skip" takes the whole pictures of a tar that is cut short or damaged.

    Raises:
        InputError: a tar is missing, packed, damaged or has no pictures, or a label is damaged.
    """
    index = _Index()
    for number, file in enumerate(files):
        before = len(index.names)
        try:
            _index(file, number, index)
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
        except _DamagedError as error:
            if damaged == "fail":
                whole = len(index.names) - before
                raise InputError(
                    f"{file}: {error}; whole pictures in it: {whole:,}. Get it anew, or take "
                    "those alone by `on_bad_image='skip'`"
                ) from error
    if not index.names:
        raise InputError(f"{path}: no pictures in {', '.join(f.name for f in files[:3])}")
    pictures = FileListing(path, index.names, index.sizes, files, index.holders, index.offsets)
    labels = None
    if all(sample in index.labels for sample in index.samples):
        labels = np.array([index.labels[sample] for sample in index.samples], np.int64)
    return EncodedImageSet(str(path), pictures, recipe("plain", shape), labels)


def _index(file: Path, number: int, index: _Index) -> None:
    """Take up one tar.

    Raises:
        OSError: it cannot be read.
        InputError: a label is damaged.
        _DamagedError: it is not whole.
    """
    length = file.stat().st_size
    with file.open("rb") as raw:
        try:
            with tarfile.open(fileobj=raw, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or it would keep every header
                    if not member.isreg() or member.issparse():
                        continue
                    if member.offset_data + member.size > length:
                        raise _DamagedError("cut short")
                    _take(file, number, raw, member, index)
                end = tar.offset
        except InputError:
            raise
        except (tarfile.TarError, EOFError, ValueError) as error:
            # Its reader ends here, too, where the last member is cut.
            reason = "no plain tar (a packed one must be unpacked first)"
            raise _DamagedError(
                "cut short" if index.holders[-1:] == [number] else reason
            ) from error
        raw.seek(end)
        # The reader takes anything for the end, after a first member; a true end is zeros.
        last = raw.read(_BLOCK)
        if last != bytes(_BLOCK):
            raise _DamagedError("cut short" if len(last) < _BLOCK else f"damaged at byte {end:,}")


def _take(file: Path, number: int, raw: Any, member: tarfile.TarInfo, index: _Index) -> None:  # noqa: ANN401
    folder, slash, base = member.name.rpartition("/")
    stem, _, kind = base.partition(".")
    sample = (number, folder + slash + stem)
    if is_picture(base):
        index.names.append(f"{file.name}/{member.name}")
        index.sizes.append(member.size)
        index.holders.append(number)
        index.offsets.append(member.offset_data)
        index.samples.append(sample)
    elif kind.lower() in ("cls", "json") and not base.startswith("._"):
        place = raw.tell()
        raw.seek(member.offset_data)
        label = _label(raw.read(min(member.size, _MAX_LABEL)), kind.lower())
        raw.seek(place)
        if label is not None:
            index.labels[sample] = label
        elif kind.lower() == "cls":
            name = printable(member.name)
            raise InputError(f"{file}: {name} is not a whole number of 0 or more")


def _label(data: bytes, kind: str) -> int | None:
    """The label in a file; None if there is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if kind == "json" and isinstance(found, dict):
        found = next((found[key] for key in _LABEL_KEYS if key in found), None)
    whole = isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 63
    return found if whole else None
