"""Decoding a set into its slots, in whatever order it is wanted; bad pictures have stand-ins."""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.cache.policy import format_size
from fastinfogan.data.cache.storage import (
    IN_MEMORY,
    CacheKey,
    FileCache,
    ImageCache,
    decoded_size,
    folder,
    open_complete,
)
from fastinfogan.data.decoders.base import DecodedBatch, Decoder

Index = NDArray[np.int64]


def decoded(
    decoder: Decoder, wanted: Iterable[Index], bad_images: BadImages
) -> Generator[DecodedBatch]:
    """Decode batches; in the place of a bad picture stands the next of the set that decodes.

    Raises:
        InputError: a bad picture, or too many of them, as the bad_images has it.
    """
    batches = decoder.batches(wanted)
    try:
        for batch in batches:
            if batch.bad:
                bad_images.add(*batch.bad)
                bad = {each.index for each in batch.bad}
                images = batch.images.copy()
                for row in np.flatnonzero(np.isin(batch.index, list(bad))):
                    images[row] = _stand_in(decoder, int(batch.index[row]), bad_images)
                batch = DecodedBatch(batch.index, images, batch.bad)
            yield batch
    finally:
        close = getattr(batches, "close", None)
        if close:
            close()


def _stand_in(decoder: Decoder, bad: int, bad_images: BadImages) -> NDArray[np.uint8]:
    count = len(decoder.source)
    for further in range(1, count):
        index = (bad + further) % count
        if index in bad_images.bad:
            continue
        found = next(iter(decoder.batches([np.array([index], np.int64)])))
        if not found.bad:
            image: NDArray[np.uint8] = found.images[0]
            return image
        bad_images.add(*found.bad)
    # One picture alone, and bad: the bad_images lets one pass.
    return np.zeros(decoder.source.shape, np.uint8)


def fill(
    decoder: Decoder, slots: ImageCache, orders: Iterable[Index], bad_images: BadImages
) -> Generator[DecodedBatch]:
    """Decode into slots what is not there yet.

    Args:
        decoder: of the set.
        slots: to be filled.
        orders: batches of numbers, in the order in which they will be needed; may never end.
        bad_images: takes up what is bad.

    Returns:
        An iterator that gives each batch once it is in its slots, and ends when all are filled.

    Raises:
        InputError: a bad picture, or too many, as the bad_images has it.
    """
    asked = slots.filled.copy()
    left = int((~asked).sum())

    def wanted() -> Iterator[Index]:
        nonlocal left
        batches = iter(orders)
        while left:
            batch = next(batches, None)
            if batch is None:
                return
            batch = np.unique(batch[~asked[batch]])
            if len(batch):
                asked[batch] = True
                left -= len(batch)
                yield batch

    for batch in decoded(decoder, wanted(), bad_images):
        slots.put(batch.index, batch.images, batch.bad)
        yield batch


def sequential_batches(count: int, rows: int) -> Iterator[Index]:
    """A whole set from its first image to its last."""
    for first in itertools.takewhile(lambda n: n < count, itertools.count(0, rows)):
        yield np.arange(first, min(first + rows, count), dtype=np.int64)


def fill_cache_file(
    decoder: Decoder,
    bad_images: BadImages,
    warn: Callable[[str], object],
    progress: Callable[[int], object] = lambda done: None,
    rows: int = 128,
) -> None:
    """Decode a whole set into its file, for later runs; what an earlier fill left is gone on with.

    Args:
        decoder: of the set.
        bad_images: takes up what is bad.
        warn: format_size if what is there is damaged.
        progress: format_size how many images are there.
        rows: images that are decoded together.

    Raises:
        InputError: a bad picture, or too many of them, as the bad_images has it.
        OSError: the disk is full or read-only.
    """
    key = CacheKey.of(decoder)
    whole = open_complete(key, warn)
    if whole is not None:
        bad_images.add(*whole.bad)
        progress(len(decoder.source))
        return
    try:
        slots = FileCache(key)
    except OSError as error:
        raise OSError(
            f"{folder()}: {error.strerror or error}; it is to hold "
            f"{format_size(decoded_size(decoder))} of decoded images"
        ) from error
    try:
        done = int(slots.filled.sum())
        progress(done)
        orders = sequential_batches(len(decoder.source), rows)
        for batch in fill(decoder, slots, orders, bad_images):
            done += len(batch.index)
            progress(done)
            if slots.warning:
                break
        else:
            slots.finish(bad_images)
        if slots.warning:
            raise OSError(slots.warning.partition(f"; {IN_MEMORY}")[0])
    finally:
        slots.close()
