"""Filling a cache with decoded images, in any order; bad images are replaced by others."""

from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.cache.partial_file import IN_MEMORY, FileCache
from fastinfogan.data.cache.policy import format_size
from fastinfogan.data.cache.storage import (
    CacheKey,
    ImageCache,
    Index,
    cache_folder,
    decoded_size,
    open_complete,
)
from fastinfogan.data.decoders.base import DecodedBatch, Decoder


def decode_batches(
    decoder: Decoder, indices: Iterable[Index], bad_images: BadImages
) -> Generator[DecodedBatch]:
    """Decode batches, with the next good image of the set in place of a bad one.

    Raises:
        InputError: a bad image, or too many of them, by the policy of `bad_images`.
    """
    batches = decoder.batches(indices)
    try:
        for batch in batches:
            if batch.bad:
                bad_images.add(*batch.bad)
                images = batch.images.copy()
                for row in np.flatnonzero(np.isin(batch.index, [bad.index for bad in batch.bad])):
                    images[row] = _replacement(decoder, int(batch.index[row]), bad_images)
                batch = DecodedBatch(batch.index, images, batch.bad)
            yield batch
    finally:
        close = getattr(batches, "close", None)
        if close:
            close()


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
    """Decode into a cache what is missing there.

    Args:
        decoder: of the set.
        cache: to be filled.
        indices: batches, in the order in which they will be needed; may be endless.
        bad_images: collects the bad images.

    Returns:
        An iterator that yields each batch once it is in the cache, and ends when all are.

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
