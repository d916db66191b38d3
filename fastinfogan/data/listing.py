"""Which pictures there are: listed in seconds, kept compactly, each made when it is asked for."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.image_set import ImageFile
from fastinfogan.errors import InputError

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)


class FileListing(Sequence[ImageFile]):
    """Pictures in files of their own, or inside of others; 200,000 take a few MB.

    Args:
        folder: that the names are relative to.
        names: of the pictures, as the file system has them.
        sizes: in bytes, one for each.
        holders: the files that they lie in; none where each is a file of its own.
        held_by: the number of each one's holder.
        offsets: of their first bytes in it.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        sizes: Sequence[int],
        holders: Sequence[Path] = (),
        held_by: Sequence[int] = (),
        offsets: Sequence[int] = (),
    ) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._folder = folder
        self._text = b"".join(encoded)
        lengths = np.array([0, *map(len, encoded)], np.int64)
        self._ends = np.cumsum(lengths)
        self._sizes = np.asarray(sizes, np.int64)
        self._holders = holders
        self._held_by = np.asarray(held_by, np.int64)
        self._offsets = np.asarray(offsets, np.int64)

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> "FileListing": ...
    def __getitem__(self, index: int | slice) -> "ImageFile | FileListing":
        """A picture, or some of them."""
        found = range(len(self))[index]
        if isinstance(found, range):
            return self.take(found)
        name, size = self.name(found), int(self._sizes[found])
        if not self._holders:
            return ImageFile(printable(name), self._folder / name, 0, size)
        holder = self._holders[int(self._held_by[found])]
        return ImageFile(printable(name), holder, int(self._offsets[found]), size)

    def __iter__(self) -> Iterator[ImageFile]:
        return (self[i] for i in range(len(self)))

    def name(self, index: int) -> str:
        """One picture's, as the file system has it."""
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [self.name(i) for i in range(len(self))]

    def take(self, rows: Iterable[int]) -> "FileListing":
        """Some of the pictures, in the order that is given."""
        chosen = np.fromiter(rows, np.int64)
        names = [self.name(i) for i in chosen.tolist()]
        if not self._holders:
            return FileListing(self._folder, names, self._sizes[chosen].tolist())
        held_by, offsets = self._held_by[chosen], self._offsets[chosen]
        sizes = self._sizes[chosen].tolist()
        return FileListing(
            self._folder, names, sizes, self._holders, held_by.tolist(), offsets.tolist()
        )


def printable(name: str) -> str:
    """A name of any bytes, fit for one line of a message."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def is_picture(name: str) -> bool:
    """Whether a file is named as a picture is; macOS leaves files in which there is none."""
    _, stop, suffix = name.rpartition(".")
    return stop + suffix.lower() in SUFFIXES and not name.startswith("._")


def list_images(
    path: Path, damaged: OnBadImage = "fail", wanted: Callable[[str], bool] = is_picture
) -> FileListing:
    """List the pictures in a folder and in those below it, in the order of their names' parts.

    Every folder is looked into once. A link to a folder is followed if nothing else leads there;
    not if it leads to a folder that this one lies in. A link that leads nowhere is listed, to be
    found bad.

    Args:
        path: the folder.
        damaged: whether a folder that cannot be read is left out.
        wanted: tells a picture by its file's name.

    Raises:
        InputError: a folder cannot be read.
    """
    names: list[str] = []
    sizes: list[int] = []
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    top = os.path.realpath(path)
    while folders or links:
        linked = not folders
        if linked:
            links.sort(reverse=True)
        prefix = (links if linked else folders).pop()
        place = os.path.join(path, prefix)
        if linked and f"{top}/".startswith(os.path.realpath(place).rstrip("/") + "/"):
            continue
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as found:
                entries = list(found)
        except OSError as error:
            if damaged == "skip" and prefix:
                continue
            reason = error.strerror or error
            raise InputError(f"{printable(place)}: cannot be listed: {reason}") from error
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{prefix}{entry.name}/")
                continue
            try:
                status = entry.stat()
            except OSError:  # a link that leads nowhere, or gone since
                size: int | None = 0
            else:
                if entry.is_symlink() and entry.is_dir():
                    links.append(f"{prefix}{entry.name}/")
                size = status.st_size if entry.is_file() else None
            if size is not None and wanted(entry.name):
                names.append(prefix + entry.name)
                sizes.append(size)
    order = sorted(range(len(names)), key=lambda i: names[i].replace("/", "\0"))
    return FileListing(path, [names[i] for i in order], [sizes[i] for i in order])
