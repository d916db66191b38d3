"""Lists of image files: read in seconds, stored compactly."""

import os
from collections.abc import Iterable, Iterator, Sequence
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
    """Image files, or images inside archives; 200,000 take a few MB.

    Args:
        folder: that the names are relative to.
        names: of the images, as the file system has them.
        sizes: of each, bytes.
        archives: the files that hold the images; empty where each image is a file.
        archive_of: index of each image's archive.
        offsets: of each image's first byte in its archive.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        sizes: Sequence[int],
        archives: Sequence[Path] = (),
        archive_of: Sequence[int] = (),
        offsets: Sequence[int] = (),
    ) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._folder = folder
        self._text = b"".join(encoded)
        lengths = np.array([0, *map(len, encoded)], np.int64)
        self._ends = np.cumsum(lengths)
        self._sizes = np.asarray(sizes, np.int64)
        self._archives = archives
        self._archive_of = np.asarray(archive_of, np.int64)
        self._offsets = np.asarray(offsets, np.int64)

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> "FileListing": ...
    def __getitem__(self, index: int | slice) -> "ImageFile | FileListing":
        """Return one image, or some of them."""
        found = range(len(self))[index]
        if isinstance(found, range):
            return self.take(found)
        name, size = self.name(found), int(self._sizes[found])
        if not self._archives:
            return ImageFile(printable(name), self._folder / name, 0, size)
        archive = self._archives[int(self._archive_of[found])]
        return ImageFile(printable(name), archive, int(self._offsets[found]), size)

    def __iter__(self) -> Iterator[ImageFile]:
        return (self[i] for i in range(len(self)))

    def name(self, index: int) -> str:
        """Return an image's name, as the file system has it."""
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])

    @property
    def names(self) -> list[str]:
        """All names."""
        return [self.name(i) for i in range(len(self))]

    def take(self, rows: Iterable[int]) -> "FileListing":
        """Return some of the images, in the given order."""
        chosen = np.fromiter(rows, np.int64)
        names = [self.name(i) for i in chosen.tolist()]
        if not self._archives:
            return FileListing(self._folder, names, self._sizes[chosen].tolist())
        archive_of, offsets = self._archive_of[chosen], self._offsets[chosen]
        sizes = self._sizes[chosen].tolist()
        return FileListing(
            self._folder, names, sizes, self._archives, archive_of.tolist(), offsets.tolist()
        )


def printable(name: str) -> str:
    """Escape what a line of text cannot show in a file name."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def is_image(name: str) -> bool:
    """Return whether a file is named as an image; macOS's ._ files are not images."""
    _, stop, suffix = name.rpartition(".")
    return stop + suffix.lower() in SUFFIXES and not name.startswith("._")


def list_images(path: Path, on_bad_image: OnBadImage = "fail") -> FileListing:
    """List the images in a folder and its subfolders, ordered by path component.

    Each folder is visited once, however many links lead to it; links to a folder above are not
    followed. A broken link is listed, and will be found to be a bad image.

    Args:
        path: the folder.
        on_bad_image: "skip" leaves out subfolders that cannot be read.

    Raises:
        InputError: a folder cannot be read.
    """
    found = sorted(_walk(path, on_bad_image), key=lambda each: each[0].replace("/", "\0"))
    return FileListing(path, [name for name, _ in found], [size for _, size in found])


def has_images(path: Path) -> bool:
    """Return whether a folder or its subfolders hold an image, or cannot be read."""
    try:
        return next(_walk(path, "fail"), None) is not None
    except InputError:  # from the reader, it says more
        return True


def _walk(path: Path, on_bad_image: OnBadImage) -> Iterator[tuple[str, int]]:
    """Yield relative name and size of each image."""
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
            if on_bad_image == "skip" and prefix:
                continue
            reason = error.strerror or error
            raise InputError(f"{printable(place)}: cannot be listed: {reason}") from error
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{name}/")
                continue
            try:
                status = entry.stat()
            except OSError:  # a broken link, or removed since
                if is_image(entry.name):
                    yield name, 0
                continue
            if entry.is_symlink() and entry.is_dir():
                links.append(f"{name}/")
            if entry.is_file() and is_image(entry.name):
                yield name, status.st_size
