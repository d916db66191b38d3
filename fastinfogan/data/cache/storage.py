"""DecodedBatch images, kept: in memory, or in a file that later runs map and never decode again.

A set's file lies in the cache folder under the hash of what it is made of: the set's fingerprint,
its decoder, and when its files were last written.

HASH.u8           the images, uint8 (N, height, width, channels)
HASH.json         written last: what they are, a checksum of every few MiB, the bad_images
HASH.XXXX.partial a fill that is going on, its owner holding a lock on it
HASH.XXXX.sums    a checksum of each of its images, 0 for one that is not there yet

What has no JSON beside it is never believed as a whole. A partial file whose owner is dead is gone
on with by the next fill of the same set, image by image, as its checksums tell.
"""

import fcntl
import hashlib
import json
import mmap
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastinfogan.atomic_io import sync
from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.decoders.base import BadImage, Decoder
from fastinfogan.paths import cache_directory

IN_MEMORY = "decoded images stay in memory, and the next run decodes again"
_FORMAT = 2
_CHUNK = 1 << 22  # bytes that share a checksum in a whole file
_ABANDONED = 24 * 3600  # seconds after which what another set's dead fill left is swept
_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE: a set may be larger than memory

Images = NDArray[np.uint8]
Index = NDArray[np.int64]


def folder() -> Path:
    """Where the files lie."""
    return cache_directory() / "images"


def decoded_size(decoder: Decoder) -> int:
    """Bytes of a set's images."""
    height, width, channels = decoder.source.shape
    return len(decoder.source) * height * width * channels


@dataclass(frozen=True)
class CacheKey:
    """What a set's decoded images are made of.

    Attributes:
        made_of: by name.
        shape: (N, height, width, channels).
    """

    made_of: dict[str, str]
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, decoder: Decoder) -> Self:
        """A set's; a file that is gone has no time, and its pictures will be found bad."""
        source = decoder.source
        times = hashlib.sha256()
        for file in dict.fromkeys(picture.file for picture in source.pictures):
            try:
                written: int | None = file.stat().st_mtime_ns
            except OSError:
                written = None
            times.update(f"{written}\0".encode())
        made_of = {**decoder.fingerprint, "sha256 of times": times.hexdigest()}
        return cls(made_of, (len(source), *source.shape))

    @property
    def hash(self) -> str:
        """Names the files."""
        text = json.dumps([self.made_of, self.shape], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class ImageCache:
    """A set's images in memory, each in its place, filled one by one.

    Args:
        shape: (N, height, width, channels).

    Attributes:
        images: uint8 of that shape.
        filled: bool (N,).
        bad: what an earlier fill found bad.
        warning: why they are not kept where they should be, if they are not.
    """

    warning: str | None = None

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.images: Images = np.zeros(shape, np.uint8)
        self.filled = np.zeros(shape[0], np.bool_)
        self.bad: tuple[BadImage, ...] = ()

    def put(self, index: Index, images: Images, bad: tuple[BadImage, ...] = ()) -> None:
        """Fill slots; those of bad pictures with what stands in for them."""
        self.images[index] = images
        self.filled[index] = True

    def finish(self, bad_images: BadImages) -> None:
        """All are filled."""

    def close(self) -> None:
        """No more will be filled."""


class FilledMask(ImageCache):
    """ImageCache that lie elsewhere; here it is only kept which are filled."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__((shape[0], 0))

    def put(self, index: Index, images: Images, bad: tuple[BadImage, ...] = ()) -> None:
        """See the base class."""
        self.filled[index] = True


class CompleteFile(ImageCache):
    """A finished set, mapped."""

    def __init__(self, images: Images, bad: tuple[BadImage, ...]) -> None:
        self.images = images
        self.filled = np.ones(len(images), np.bool_)
        self.bad = bad


def open_complete(
    key: CacheKey, warn: Callable[[str], object], *, check: bool = True
) -> CompleteFile | None:
    """Map a finished set, after comparing every byte with its checksum.

    Args:
        key: which set.
        warn: format_size if the file is damaged; it is removed then. Also if it cannot be read.
        check: compare; a file that was just written need not be.

    Returns:
        None where there is none.
    """
    data, described = folder() / f"{key.hash}.u8", folder() / f"{key.hash}.json"
    try:
        found = json.loads(described.read_text())
        with data.open("rb") as file:
            if os.fstat(file.fileno()).st_size != np.prod(key.shape):
                raise ValueError("cut short")
            # Private: the array may be written, as torch wants it, and the file never is.
            mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE)
        flat = np.frombuffer(mapped, np.uint8)
        if found["format"] != _FORMAT or found["made of"] != key.made_of:
            raise ValueError("of another set")
        if check and found["crc32"] != checksums(flat):
            raise ValueError("a checksum is not its own")
        bad = tuple(BadImage(**each) for each in found["bad_images"])
    except FileNotFoundError:
        return None
    except OSError as error:  # no reason to throw it away
        warn(f"{data}: {error.strerror or error}; decoding again")
        return None
    except (ValueError, KeyError, TypeError) as error:
        warn(f"{data}: not as it was written ({error}); decoding again")
        for file_ in (described, data):
            _remove(file_)
        return None
    return CompleteFile(flat.reshape(key.shape), bad)


def is_cached(key: CacheKey) -> bool:
    """Whether a set's finished file is there, be it damaged or not."""
    return (folder() / f"{key.hash}.json").exists()


def checksums(flat: Images) -> list[int]:
    """CRC-32 of every `_CHUNK` bytes, by all cores: zlib lets other threads run meanwhile."""
    parts = [flat[start : start + _CHUNK] for start in range(0, len(flat), _CHUNK)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(zlib.crc32, parts))


class FileCache(ImageCache):
    """A set's images in a file that is being filled; one that a dead process left is gone on with.

    Written by write(2) and read through a mapping: a full disk is an error of the one and would be
    the end of the process by the other.

    Args:
        key: which set.

    Raises:
        OSError: the folder is read-only, or the disk has no room for the whole set.
    """

    def __init__(self, key: CacheKey) -> None:
        self._key = key
        self._size = int(np.prod(key.shape))
        folder().mkdir(parents=True, exist_ok=True)
        self.filled = np.zeros(key.shape[0], np.bool_)
        self.bad = ()
        self._file = self._sums_file = -1
        self._in_memory = False
        found = _abandoned(key.hash, self._size)
        self._file, self._path = found or _new(key.hash)
        self._sums_path = self._path.with_suffix(".sums")
        try:
            os.posix_fallocate(self._file, 0, self._size)
            self._map = mmap.mmap(self._file, self._size, access=mmap.ACCESS_WRITE)
            self.images = np.frombuffer(self._map, np.uint8).reshape(key.shape)
            self._sums_file = os.open(self._sums_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._sums_file, 0, 4 * len(self.filled))
        except OSError:
            self._give_up()
            raise
        if found is not None:
            self._believe_what_is_whole()

    def _believe_what_is_whole(self) -> None:
        sums = np.frombuffer(os.pread(self._sums_file, 4 * len(self.filled), 0), np.uint32)
        for i in np.flatnonzero(sums):
            self.filled[i] = _sum(self.images[i]) == sums[i]

    def put(self, index: Index, images: Images, bad: tuple[BadImage, ...] = ()) -> None:
        """See the base class; on a full or broken disk, go on in memory."""
        if self._file >= 0:
            try:
                self._write(index, images, {each.index for each in bad})
                self.filled[index] = True
                return
            except OSError as error:
                self._go_on_in_memory(error)
        elif not self._in_memory:  # closed: another may hold the file by now
            self.images, self._in_memory = self.images.copy(), True
        super().put(index, images)

    def _write(self, index: Index, images: Images, bad: set[int]) -> None:
        row = self._size // len(self.filled)
        for i, image in zip(index.tolist(), images, strict=True):
            _pwrite(self._file, image.tobytes(), i * row)
            if i not in bad:  # who goes on with this file is to know of them, too
                _pwrite(self._sums_file, _sum(image).to_bytes(4, "little"), 4 * i)

    def finish(self, bad_images: BadImages) -> None:
        """Make it a whole file, for others to find; if it cannot be, that is a warning."""
        if self._file < 0:
            return
        described = folder() / f"{self._key.hash}.json"
        beside = self._path.with_suffix(".json.partial")
        content: dict[str, Any] = {
            "format": _FORMAT,
            "made of": self._key.made_of,
            "shape": self._key.shape,
            "crc32": checksums(self.images.reshape(-1)),
            "bad_images": bad_images.records(),
        }
        try:
            os.fsync(self._file)
            with beside.open("w") as file:
                file.write(json.dumps(content))
                file.flush()
                os.fsync(file.fileno())
            self._path.rename(folder() / f"{self._key.hash}.u8")
            beside.rename(described)
            sync(folder())
        except OSError as error:
            _remove(beside)
            self._go_on_in_memory(error)
            return
        self.close()
        _remove(self._sums_path)

    def _go_on_in_memory(self, error: OSError) -> None:
        self.warning = f"{self._path.parent}: {error}; {IN_MEMORY}"
        self._give_up()
        self.images, self._in_memory = self.images.copy(), True

    def close(self) -> None:
        """Let go of the file; if it is not whole, the next fill may take it up."""
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # the mapping would hold it on
            os.close(self._sums_file)
            os.close(self._file)
            self._file = -1

    def _give_up(self) -> None:
        for file in (self._path, self._sums_path):
            _remove(file)
        for each in (self._file, self._sums_file):
            if each >= 0:
                os.close(each)
        self._file = -1


def _new(name: str) -> tuple[int, Path]:
    """Make a partial file and hold it."""
    while True:
        file, made = mkstemp(".partial", f"{name}.", folder())
        path = Path(made)
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():  # else somebody has swept it before it was held
            return file, path
        os.close(file)


def _abandoned(name: str, size: int) -> tuple[int, Path] | None:
    """Take up the fullest partial file of a set that nobody holds, and sweep what is dead."""
    mine: list[tuple[int, Path]] = []
    for file, path in _dead_partials():
        ours = path.name.startswith(f"{name}.")
        if ours and os.fstat(file).st_size == size:
            mine.append((file, path))
            continue
        if ours or _is_old(path):
            _remove_fill(path)
        os.close(file)
    mine.sort(key=lambda each: _count_there(each[1]))
    for file, path in mine[:-1]:
        _remove_fill(path)
        os.close(file)
    _sweep()
    return mine[-1] if mine else None


def _dead_partials() -> Iterator[tuple[int, Path]]:
    """Hold each partial file that nobody holds."""
    for path in sorted(folder().glob("*.partial")):
        if path.name.endswith(".json.partial"):
            continue
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = path.stat().st_ino == os.fstat(file).st_ino  # or it was finished a moment ago
        except OSError:
            same = False
        if same:
            yield file, path
        else:
            os.close(file)


def _sweep() -> None:
    """Remove what fills left that died while they made a whole file, or after."""
    partners = {".sums": ".partial", ".json.partial": ".partial", ".u8": ".json"}
    for suffix, partner in partners.items():
        for path in folder().glob(f"*{suffix}"):
            beside = path.with_name(path.name.removesuffix(suffix) + partner)
            if not beside.exists() and _is_old(path):
                _remove(path)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except OSError:
        return False


def _count_there(path: Path) -> int:
    """How many images a partial file holds, by its checksums."""
    try:
        return int(np.count_nonzero(np.fromfile(path.with_suffix(".sums"), np.uint32)))
    except OSError:
        return 0


def _remove_fill(path: Path) -> None:
    for each in (path, path.with_suffix(".sums"), path.with_suffix(".json.partial")):
        _remove(each)


def _sum(image: Images) -> int:
    """CRC-32, and 1 for 0, which is a slot that is not filled."""
    return zlib.crc32(image.tobytes()) or 1


def _pwrite(file: int, data: bytes, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written


def _remove(path: Path) -> None:
    with suppress(OSError):  # a read-only folder keeps what is not believed
        path.unlink(missing_ok=True)
