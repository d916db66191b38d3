"""Decoding a set into its slots, in whatever order it is wanted; bad pictures have stand-ins."""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.cache.policy import told
from fastinfogan.data.cache.slots import (
    IN_MEMORY,
    FileSlots,
    Key,
    Slots,
    folder,
    open_whole,
    size_of,
)
from fastinfogan.data.decoders.base import Decoded, Decoder

Index = NDArray[np.int64]


def decoded(decoder: Decoder, wanted: Iterable[Index], quarantine: BadImages) -> Generator[Decoded]:
    """Decode batches; in the place of a bad picture stands the next of the set that decodes.

    Raises:
        InputError: a bad picture, or too many of them, as the quarantine has it.
    """
    batches = decoder.batches(wanted)
    try:
        for batch in batches:
            if batch.bad:
                quarantine.add(*batch.bad)
                bad = {each.index for each in batch.bad}
                images = batch.images.copy()
                for row in np.flatnonzero(np.isin(batch.index, list(bad))):
                    images[row] = _stand_in(decoder, int(batch.index[row]), quarantine)
                batch = Decoded(batch.index, images, batch.bad)
            yield batch
    finally:
        close = getattr(batches, "close", None)
        if close:
            close()


def _stand_in(decoder: Decoder, bad: int, quarantine: BadImages) -> NDArray[np.uint8]:
    count = len(decoder.source)
    for further in range(1, count):
        index = (bad + further) % count
        if index in quarantine.bad:
            continue
        found = next(iter(decoder.batches([np.array([index], np.int64)])))
        if not found.bad:
            image: NDArray[np.uint8] = found.images[0]
            return image
        quarantine.add(*found.bad)
    # One picture alone, and bad: the quarantine lets one pass.
    return np.zeros(decoder.source.shape, np.uint8)


def fill(
    decoder: Decoder, slots: Slots, orders: Iterable[Index], quarantine: BadImages
) -> Generator[Decoded]:
    """Decode into slots what is not there yet.

    Args:
        decoder: of the set.
        slots: to be filled.
        orders: batches of numbers, in the order in which they will be needed; may never end.
        quarantine: takes up what is bad.

    Returns:
        An iterator that gives each batch once it is in its slots, and ends when all are filled.

    Raises:
        InputError: a bad picture, or too many, as the quarantine has it.
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

    for batch in decoded(decoder, wanted(), quarantine):
        slots.put(batch.index, batch.images, batch.bad)
        yield batch


def in_sequence(count: int, rows: int) -> Iterator[Index]:
    """A whole set from its first image to its last."""
    for first in itertools.takewhile(lambda n: n < count, itertools.count(0, rows)):
        yield np.arange(first, min(first + rows, count), dtype=np.int64)


def fill_file(
    decoder: Decoder,
    quarantine: BadImages,
    warn: Callable[[str], object],
    progress: Callable[[int], object] = lambda done: None,
    rows: int = 128,
) -> None:
    """Decode a whole set into its file, for later runs; what an earlier fill left is gone on with.

    Args:
        decoder: of the set.
        quarantine: takes up what is bad.
        warn: told if what is there is damaged.
        progress: told how many images are there.
        rows: images that are decoded together.

    Raises:
        InputError: a bad picture, or too many of them, as the quarantine has it.
        OSError: the disk is full or read-only.
    """
    key = Key.of(decoder)
    whole = open_whole(key, warn)
    if whole is not None:
        quarantine.add(*whole.bad)
        progress(len(decoder.source))
        return
    try:
        slots = FileSlots(key)
    except OSError as error:
        raise OSError(
            f"{folder()}: {error.strerror or error}; it is to hold {told(size_of(decoder))} of "
            "decoded images"
        ) from error
    try:
        done = int(slots.filled.sum())
        progress(done)
        orders = in_sequence(len(decoder.source), rows)
        for batch in fill(decoder, slots, orders, quarantine):
            done += len(batch.index)
            progress(done)
            if slots.warning:
                break
        else:
            slots.finish(quarantine)
        if slots.warning:
            raise OSError(slots.warning.partition(f"; {IN_MEMORY}")[0])
    finally:
        slots.close()
