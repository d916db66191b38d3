"""A cache file that is being filled, and what processes that died left of theirs.

Its owner holds a lock on it. The next process that fills the same set resumes it, image by image,
as far as the checksums match.
"""

import fcntl
import json
import mmap
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import numpy as np

from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.cache.storage import (
    FORMAT_VERSION,
    CacheKey,
    ImageCache,
    Images,
    Index,
    cache_folder,
    checksums,
    remove,
)
from fastinfogan.data.decoders.base import BadImage
from fastinfogan.files import replacing, sync

IN_MEMORY = "decoded images stay in memory, and the next run decodes them again"
_ABANDONED = 24 * 3600  # seconds after which files of other sets' dead processes are removed


class FileCache(ImageCache):
    """A set's decoded images in a file, resumed if a dead process left one.

    Written with pwrite and read through a mapping: on a full disk the former is an error, while
    writing to a mapping would end the process.

    Args:
        key: of the set.

    Raises:
        OSError: the folder is read-only, or the disk cannot hold the whole set.
    """

    def __init__(self, key: CacheKey) -> None:
        self._key = key
        self._size = int(np.prod(key.shape))
        cache_folder().mkdir(parents=True, exist_ok=True)
        self.filled = np.zeros(key.shape[0], np.bool_)
        self.bad = ()
        self._file = self._sums_file = -1
        self._in_memory = False
        resumed = _resume(key.hash, self._size)
        self._file, self._path = resumed or _create(key.hash)
        self._sums_path = self._path.with_suffix(".sums")
        try:
            os.posix_fallocate(self._file, 0, self._size)
            self._map = mmap.mmap(self._file, self._size, access=mmap.ACCESS_WRITE)
            self.images = np.frombuffer(self._map, np.uint8).reshape(key.shape)
            self._sums_file = os.open(self._sums_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._sums_file, 0, 4 * len(self.filled))
        except OSError:
            self._discard()
            raise
        if resumed is not None:
            sums = np.frombuffer(os.pread(self._sums_file, 4 * len(self.filled), 0), np.uint32)
            for i in np.flatnonzero(sums):
                self.filled[i] = _checksum(self.images[i]) == sums[i]

    def put(self, index: Index, images: Images, bad: tuple[BadImage, ...] = ()) -> None:
        """Store images; on a full or broken disk, continue in memory."""
        if self._file >= 0:
            try:
                self._write(index, images, {each.index for each in bad})
            except OSError as error:
                self._continue_in_memory(error)
        elif not self._in_memory:  # closed: another process may own the file by now
            self.images, self._in_memory = self.images.copy(), True
        if self._in_memory:
            self.images[index] = images
        self.filled[index] = True

    def _write(self, index: Index, images: Images, bad: set[int]) -> None:
        row = self._size // len(self.filled)
        for i, image in zip(index.tolist(), images, strict=True):
            _pwrite(self._file, image.tobytes(), i * row)
            if i not in bad:  # the process that resumes this file must find the bad ones again
                _pwrite(self._sums_file, _checksum(image).to_bytes(4, "little"), 4 * i)

    def finish(self, bad_images: BadImages) -> None:
        """Make it the finished file of the set; failure is a warning."""
        if self._file < 0:
            return
        content: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "made of": self._key.made_of,
            "shape": self._key.shape,
            "crc32": checksums(self.images.reshape(-1)),
            "bad_images": bad_images.records(),
        }
        try:
            sync(self._path)
            with replacing(self._key.json_file) as partial:
                partial.write_text(json.dumps(content))
                self._path.rename(self._key.data_file)
        except OSError as error:
            self._continue_in_memory(error)
            return
        self.close()
        remove(self._sums_path)

    def _continue_in_memory(self, error: OSError) -> None:
        self.warning = f"{self._path.parent}: {error}; {IN_MEMORY}"
        self._discard()
        self.images, self._in_memory = self.images.copy(), True

    def close(self) -> None:
        """Release the file; an unfinished one can be resumed."""
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # the mapping would keep it locked
            os.close(self._sums_file)
            os.close(self._file)
            self._file = -1

    def _discard(self) -> None:
        _remove_partial(self._path)
        for each in (self._file, self._sums_file):
            if each >= 0:
                os.close(each)
        self._file = -1


def _create(name: str) -> tuple[int, Path]:
    """Create a partial file and lock it."""
    while True:
        file, made = mkstemp(".partial", f"{name}.", cache_folder())
        path = Path(made)
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():  # else another process removed it before it was locked
            return file, path
        os.close(file)


def _resume(name: str, size: int) -> tuple[int, Path] | None:
    """Lock the fullest partial file of a set that no process owns, and remove dead files."""
    resumable: list[tuple[int, Path]] = []
    for file, path in _lock_abandoned():
        same_set = path.name.startswith(f"{name}.")
        if same_set and os.fstat(file).st_size == size:
            resumable.append((file, path))
            continue
        if same_set or _is_old(path):
            _remove_partial(path)
        os.close(file)
    resumable.sort(key=lambda each: _count_filled(each[1]))
    for file, path in resumable[:-1]:
        _remove_partial(path)
        os.close(file)
    _remove_leftovers()
    return resumable[-1] if resumable else None


def _lock_abandoned() -> Iterator[tuple[int, Path]]:
    """Lock each partial file that no process holds."""
    for path in sorted(cache_folder().glob("[!.]*.partial")):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = path.stat().st_ino == os.fstat(file).st_ino  # else it was just finished
        except OSError:
            same = False
        if same:
            yield file, path
        else:
            os.close(file)


def _remove_leftovers() -> None:
    """Remove old files of processes that died while they finished a file."""
    orphans = [*cache_folder().glob(".*.partial")]
    for suffix, partner in {".sums": ".partial", ".u8": ".json"}.items():
        files = cache_folder().glob(f"*{suffix}")
        orphans += [path for path in files if not path.with_suffix(partner).exists()]
    for path in orphans:
        if _is_old(path):
            remove(path)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except OSError:
        return False


def _count_filled(path: Path) -> int:
    """Return the number of images in a partial file, by its checksums."""
    try:
        return int(np.count_nonzero(np.fromfile(path.with_suffix(".sums"), np.uint32)))
    except OSError:
        return 0


def _remove_partial(path: Path) -> None:
    remove(path)
    remove(path.with_suffix(".sums"))


def _checksum(image: Images) -> int:
    """Return the CRC-32, with 1 for 0, which stands for a missing image."""
    return zlib.crc32(image.tobytes()) or 1


def _pwrite(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
