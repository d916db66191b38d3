"""WebDataset's shards: tar files of images, each with its label beside it.

Files with one name up to the first dot are one sample: 000123.jpg, 000123.cls. A .cls is an
integer; a .json is one, or has it as "label", "cls" or "class". Images are read at their offset in
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
from fastinfogan.data.formats import Format, register
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageShape
from fastinfogan.data.listing import FileListing, has_images, is_image, printable
from fastinfogan.errors import InputError

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_BLOCK: Final = 512
_MAX_LABEL: Final = 1 << 20  # bytes
_MAX_SHARDS: Final = 100_000
_LABEL_KEYS: Final = ("label", "cls", "class")


class _DamagedError(Exception):
    """The rest of a tar cannot be read."""


class _Index:
    """The images and labels found in the tars so far."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sizes: list[int] = []
        self.archives: list[int] = []
        self.offsets: list[int] = []
        self.samples: list[tuple[int, str]] = []
        self.labels: dict[tuple[int, str], int] = {}


def detect(path: Path) -> bool:
    """Return whether a path is a tar or a pattern, or a folder of tars and not of images."""
    if path.is_dir():
        return next(path.glob("*.tar"), None) is not None and not has_images(path)
    return path.suffix == ".tar"


def _shards(path: Path) -> list[Path]:
    """Return the tars of a path: a file, a folder, or a pattern with braces.

    shard-{000..009}.tar and {train,extra}.tar are patterns.

    Raises:
        InputError: a pattern names more than 100,000 files.
    """
    if path.is_dir():
        return sorted(path.glob("*.tar"))
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
            raise InputError(f"{path}: {found[0]} must count upwards, to at most {_MAX_SHARDS:,}")
        pieces.append([f"{n:0{len(found[1])}d}" for n in range(first, last + 1)])
    pieces.append([str(path)[end:]])
    count = np.prod([len(piece) for piece in pieces], dtype=object)
    if count > _MAX_SHARDS:
        raise InputError(f"{path}: stands for {count:,} files; at most {_MAX_SHARDS:,} are opened")
    return [Path("".join(parts)) for parts in itertools.product(*pieces)]


def read(path: Path, shape: ImageShape, on_bad_image: OnBadImage = "fail") -> EncodedImageSet:
    """List the images of tars, and their labels if all have one.

    "skip" takes the complete images of a truncated or damaged tar.

    Raises:
        InputError: a tar is missing, compressed, damaged or without images, or a label is damaged.
    """
    files, index = _shards(path), _Index()
    for number, file in enumerate(files):
        before = len(index.names)
        try:
            _index(file, number, index)
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
        except _DamagedError as error:
            if on_bad_image == "fail":
                whole = len(index.names) - before
                raise InputError(
                    f"{file}: {error}; it holds {whole:,} complete images. Download it again, or "
                    "use those alone by `on_bad_image='skip'`"
                ) from error
    if not index.names:
        raise InputError(f"{path}: no images in {', '.join(f.name for f in files[:3])}")
    images = FileListing(path, index.names, index.sizes, files, index.archives, index.offsets)
    labels = None
    if all(sample in index.labels for sample in index.samples):
        labels = np.array([index.labels[sample] for sample in index.samples], np.int64)
    return EncodedImageSet(str(path), images, CropResize(shape), labels)


def _index(file: Path, number: int, index: _Index) -> None:
    """Add the files of one tar.

    Raises:
        OSError: it cannot be read.
        InputError: a label is damaged.
        _DamagedError: it is truncated or damaged.
    """
    length = file.stat().st_size
    with file.open("rb") as raw:
        try:
            with tarfile.open(fileobj=raw, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would store every header
                    if not member.isreg() or member.issparse():
                        continue
                    if member.offset_data + member.size > length:
                        raise _DamagedError("truncated")
                    _take(file, number, raw, member, index)
                end = tar.offset
        except InputError:
            raise
        except (tarfile.TarError, EOFError, ValueError) as error:
            # A truncated last member ends here, too.
            reason = "not a plain tar (decompress it first)"
            raise _DamagedError(
                "truncated" if index.archives[-1:] == [number] else reason
            ) from error
        raw.seek(end)
        # After a first member the reader takes anything for the end; a true end is zeros.
        last = raw.read(_BLOCK)
        if last != bytes(_BLOCK):
            raise _DamagedError("truncated" if len(last) < _BLOCK else f"damaged at byte {end:,}")


def _take(file: Path, number: int, raw: Any, member: tarfile.TarInfo, index: _Index) -> None:  # noqa: ANN401
    folder, slash, base = member.name.rpartition("/")
    stem, _, kind = base.partition(".")
    sample = (number, folder + slash + stem)
    if is_image(base):
        index.names.append(f"{file.name}/{member.name}")
        index.sizes.append(member.size)
        index.archives.append(number)
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
            raise InputError(f"{file}: {name} is not an integer >= 0")


def _label(data: bytes, kind: str) -> int | None:
    """Return the label in a file, if there is one."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if kind == "json" and isinstance(found, dict):
        found = next((found[key] for key in _LABEL_KEYS if key in found), None)
    whole = isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 63
    return found if whole else None


register(
    Format("WebDataset", ".tar files of images (shard-{000..009}.tar)", detect, read, priority=80)
)
