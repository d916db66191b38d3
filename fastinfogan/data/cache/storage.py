"""Decoded images in memory, or in a finished cache file.

The cache file of a set is named by a hash of its fingerprint, its decoder and the modification
times of its files:

HASH.u8           the images, uint8 (N, height, width, channels)
HASH.json         written last: what they are, checksums, the bad images
HASH.XXXX.partial a file that is being filled, see `partial_file`
HASH.XXXX.sums    a checksum of each image in it, 0 for a missing one
"""

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.decoders.base import BadImage, Decoder
from fastinfogan.files import cache_directory

FORMAT_VERSION = 2
_CHUNK = 1 << 22  # bytes per checksum of a finished file
_MAP_NORESERVE = 0x4000  # a set may be larger than memory

Images = NDArray[np.uint8]
Index = NDArray[np.int64]


def cache_folder() -> Path:
    """Return the folder of the cache files."""
    return cache_directory() / "images"


def decoded_size(decoder: Decoder) -> int:
    """Return the size of a set's decoded images, bytes."""
    height, width, channels = decoder.image_set.shape
    return len(decoder.image_set) * height * width * channels


@dataclass(frozen=True)
class CacheKey:
    """What determines a set's decoded images.

    Attributes:
        made_of: fingerprints by name.
        shape: (N, height, width, channels).
    """

    made_of: dict[str, str]
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, decoder: Decoder) -> Self:
        """Return the key of a set and its decoder; missing files will be found to be bad images."""
        times = hashlib.sha256()
        for path in dict.fromkeys(file.path for file in decoder.image_set.files):
            try:
                written: int | None = path.stat().st_mtime_ns
            except OSError:
                written = None
            times.update(f"{written}\0".encode())
        made_of = {**decoder.fingerprint, "sha256 of times": times.hexdigest()}
        return cls(made_of, (len(decoder.image_set), *decoder.image_set.shape))

    @property
    def hash(self) -> str:
        """The name of the files."""
        text = json.dumps([self.made_of, self.shape], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def data_file(self) -> Path:
        """The finished file of images."""
        return cache_folder() / f"{self.hash}.u8"

    @property
    def json_file(self) -> Path:
        """The file that is written last."""
        return cache_folder() / f"{self.hash}.json"

    def is_cached(self) -> bool:
        """Return whether there is a finished file, intact or not."""
        return self.json_file.exists()


class ImageCache:
    """A set's decoded images in memory.

    Args:
        shape: (N, height, width, channels).

    Attributes:
        images: uint8 of that shape.
        filled: bool (N,), which images are there.
        bad: images that were found to be bad when the cache was filled earlier.
        warning: why the images are not in a file as intended, if so.
    """

    warning: str | None = None

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.images: Images = np.zeros(shape, np.uint8)
        self.filled = np.zeros(shape[0], np.bool_)
        self.bad: tuple[BadImage, ...] = ()

    def put(self, index: Index, images: Images, bad: tuple[BadImage, ...] = ()) -> None:
        """Store images; those of bad images are their replacements."""
        self.images[index] = images
        self.filled[index] = True

    def finish(self, bad_images: BadImages) -> None:
        """Complete the cache: all images are filled."""

    def close(self) -> None:
        """Release the cache: no more images will be filled."""


class FilledMask(ImageCache):
    """A cache whose images are stored elsewhere, such as in GPU memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__((shape[0], 0))

    def put(self, index: Index, images: Images, bad: tuple[BadImage, ...] = ()) -> None:
        """Mark images as filled."""
        self.filled[index] = True


class FullCache(ImageCache):
    """A cache that is complete from the start."""

    def __init__(self, images: Images, bad: tuple[BadImage, ...] = ()) -> None:
        self.images = images
        self.filled = np.ones(len(images), np.bool_)
        self.bad = bad


def open_complete(key: CacheKey, warn: Callable[[str], object]) -> FullCache | None:
    """Map a finished cache file after comparing all checksums.

    Args:
        key: of the set.
        warn: called if the file is damaged, and removed, or cannot be read.

    Returns:
        The cache, or None if there is none.
    """
    data = key.data_file
    try:
        found = json.loads(key.json_file.read_text())
        with data.open("rb") as file:
            if os.fstat(file.fileno()).st_size != np.prod(key.shape):
                raise ValueError("truncated")
            # Private: torch wants a writable array, and the file is never written.
            mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE)
        flat = np.frombuffer(mapped, np.uint8)
        if found["format"] != FORMAT_VERSION or found["made of"] != key.made_of:
            raise ValueError("of another set or version")
        if found["crc32"] != checksums(flat):
            raise ValueError("a checksum differs")
        bad = tuple(BadImage(**each) for each in found["bad_images"])
    except FileNotFoundError:
        return None
    except OSError as error:
        warn(f"{data}: {error.strerror or error}; decoding again")
        return None
    except (ValueError, KeyError, TypeError) as error:
        warn(f"{data}: damaged ({error}); decoding again")
        remove(key.json_file)
        remove(data)
        return None
    return FullCache(flat.reshape(key.shape), bad)


def checksums(flat: Images) -> list[int]:
    """Return the CRC-32 of every 4 MiB, on all cores: zlib releases the GIL."""
    parts = [flat[start : start + _CHUNK] for start in range(0, len(flat), _CHUNK)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(zlib.crc32, parts))


def remove(path: Path) -> None:
    """Remove a file if it is there; in a read-only folder it stays."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
