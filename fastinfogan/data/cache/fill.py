"""Fill a cache with decoded images, in any order; bad images are replaced by others.

A training run fills it in the order of its `Sampler`; `fill_cache_file` goes through the whole set.
"""

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastinfogan.data.bad_images import BadImages, OnBadImage
from fastinfogan.data.cache.partial_file import IN_MEMORY, FileCache
from fastinfogan.data.cache.policy import (
    PLACES,
    CacheName,
    CachePolicy,
    choose_cache_policy,
    format_size,
)
from fastinfogan.data.cache.storage import (
    CacheKey,
    ImageCache,
    Index,
    cache_folder,
    decoded_size,
    open_complete,
)
from fastinfogan.data.decoders.base import DecodedBatch, Decoder
from fastinfogan.distributed import Distributed
from fastinfogan.errors import InputError
from fastinfogan_kernels import philox

_SYNC_EVERY = 2.0  # seconds between two collectives while rank 0 decodes for all


@dataclass(frozen=True)
class Sampler:
    """The images that this process takes at each iteration.

    Attributes:
        seed: of the run.
        count: images in the set.
        batch: global batch size, of all ranks.
        rows: of the global batch that belong to this rank.
    """

    seed: int
    count: int
    batch: int
    rows: range

    def __call__(self, step: int) -> Index:
        """Return the indices of an iteration: int64 (rows,)."""
        first = step * self.batch + self.rows.start
        return philox.shuffled_indices(self.seed, first, len(self.rows), self.count)

    def since(self, step: int) -> Iterator[Index]:
        """Yield the indices of an iteration and all that follow."""
        return (self(each) for each in itertools.count(step))


def decode_batches(
    decoder: Decoder, indices: Iterable[Index], bad_images: BadImages
) -> Generator[DecodedBatch]:
    """Decode batches, with the next good image of the set in place of a bad one.

    Raises:
        InputError: a bad image, or too many of them, by the policy of `bad_images`.
    """
    with closing(decoder.batches(indices)) as batches:
        for batch in batches:
            if batch.bad:
                bad_images.add(*batch.bad)
                images = batch.images.copy()
                for row in np.flatnonzero(np.isin(batch.index, [bad.index for bad in batch.bad])):
                    images[row] = _replacement(decoder, int(batch.index[row]), bad_images)
                batch = DecodedBatch(batch.index, images, batch.bad)
            yield batch


def _replacement(decoder: Decoder, bad: int, bad_images: BadImages) -> NDArray[np.uint8]:
    count = len(decoder.image_set)
    for offset in range(1, count):
        index = (bad + offset) % count
        if index in bad_images.bad:
            continue
        found = next(iter(decoder.batches([np.array([index], np.int64)])))
        if not found.bad:
            image: NDArray[np.uint8] = found.images[0]
            return image
        bad_images.add(*found.bad)
    # The only image of its set: `BadImages` allows one.
    return np.zeros(decoder.image_set.shape, np.uint8)


def fill_cache(
    decoder: Decoder, cache: ImageCache, indices: Iterable[Index], bad_images: BadImages
) -> Generator[DecodedBatch]:
    """Decode into a cache what is missing there; yield each batch once it is in the cache.

    `indices` are batches in the order in which they will be needed, and may be endless.

    Raises:
        InputError: a bad image, or too many of them, by the policy of `bad_images`.
    """
    requested = cache.filled.copy()
    left = int((~requested).sum())

    def missing() -> Iterator[Index]:
        nonlocal left
        batches = iter(indices)
        while left:
            batch = next(batches, None)
            if batch is None:
                return
            batch = np.unique(batch[~requested[batch]])
            if len(batch):
                requested[batch] = True
                left -= len(batch)
                yield batch

    for batch in decode_batches(decoder, missing(), bad_images):
        cache.put(batch.index, batch.images, batch.bad)
        yield batch


@dataclass
class CacheFiller:
    """Filling of a cache in the order of training; `decoder` is None if it is full already."""

    sampler: Sampler
    decoder: Decoder | None
    cache: ImageCache
    bad_images: BadImages

    def batches(self, step: int) -> Generator[DecodedBatch]:
        """Decode what is missing, from an iteration on, then finish the cache."""
        if not self.cache.filled.all():
            assert self.decoder is not None
            indices = self.sampler.since(step)
            yield from fill_cache(self.decoder, self.cache, indices, self.bad_images)
            self.cache.finish(self.bad_images)


def sequential_batches(count: int, size: int) -> Iterator[Index]:
    """Yield the indices of a whole set in batches."""
    for first in range(0, count, size):
        yield np.arange(first, min(first + size, count), dtype=np.int64)


def fill_cache_file(
    decoder: Decoder,
    bad_images: BadImages,
    warn: Callable[[str], object],
    progress: Callable[[int], object] = lambda done: None,
    batch_size: int = 128,
) -> None:
    """Decode a whole set into its cache file; resumes what an earlier process left.

    Args:
        decoder: of the set.
        bad_images: collects the bad images.
        warn: called if an existing file is damaged.
        progress: called with the number of images in the file.
        batch_size: images that are decoded together.

    Raises:
        InputError: a bad image, or too many of them, by the policy of `bad_images`.
        OSError: the disk is full or read-only.
    """
    key = CacheKey.of(decoder)
    complete = open_complete(key, warn)
    if complete is not None:
        bad_images.add(*complete.bad)
        progress(len(decoder.image_set))
        return
    try:
        cache = FileCache(key)
    except OSError as error:
        raise OSError(
            f"{cache_folder()}: {error.strerror or error}; it needs "
            f"{format_size(decoded_size(decoder))} for the decoded images"
        ) from error
    try:
        done = int(cache.filled.sum())
        progress(done)
        indices = sequential_batches(len(decoder.image_set), batch_size)
        for batch in fill_cache(decoder, cache, indices, bad_images):
            done += len(batch.index)
            progress(done)
            if cache.warning:
                break
        else:
            cache.finish(bad_images)
        if cache.warning:
            raise OSError(cache.warning.partition(f"; {IN_MEMORY}")[0])
    finally:
        cache.close()


def fill_shared_cache(
    distributed: Distributed, decoder: Decoder, cache: CacheName, on_bad_image: OnBadImage
) -> None:
    """Let rank 0 decode the whole set into its cache file, which all ranks map; they wait for it.

    If the file is not to be written, or cannot be, each rank decodes for itself.

    Raises:
        InputError: an image cannot be decoded, or too many cannot.
        TrainingError: another rank has died.
    """
    if distributed.rank != 0:
        done = failed = False
        while not done:
            done, failed = distributed.any_process(False, False)
        if failed:
            raise InputError("rank 0 could not decode the images; its message says why")
        return
    last = time.monotonic()

    def synchronise(_: int) -> None:
        # A collective that is waited for too long fails, and decoding may take hours.
        nonlocal last
        if time.monotonic() - last >= _SYNC_EVERY:
            distributed.any_process(False, False)
            last = time.monotonic()

    encoded = decoder.image_set
    bad_images = BadImages(encoded.name, len(encoded), on_bad_image)
    try:
        if policy_for(decoder, torch.device("cpu"), cache).writes_file:
            with suppress(OSError):  # `make_loader` will find and report the same
                fill_cache_file(decoder, bad_images, lambda _: None, synchronise)
    except InputError:
        distributed.any_process(True, True)
        raise
    distributed.any_process(True, False)


def policy_for(decoder: Decoder, device: torch.device, cache: CacheName) -> CachePolicy:
    """Choose where the decoded images of a set are cached.

    Raises:
        InputError: they do not fit where requested.
    """
    gpu_free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    is_cached = CacheKey.of(decoder).is_cached()
    size = decoded_size(decoder)
    return choose_cache_policy(cache, size, gpu_free, cache_folder(), is_cached=is_cached)


def describe_cache_plan(decoder: Decoder, device: torch.device, cache: CacheName = "auto") -> str:
    """Describe where a set's decoded images would be cached."""
    size = format_size(decoded_size(decoder))
    if CacheKey.of(decoder).is_cached():
        return f"{size}, decoded already, in {cache_folder()}"
    policy = policy_for(decoder, device, cache)
    file = f", written to {cache_folder()} for later runs" if policy.writes_file else ""
    return f"{size}, cached in {PLACES[policy.location]} ({policy.reason}){file}"
