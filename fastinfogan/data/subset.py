"""Decoded images of an encoded set, to look at or to evaluate on."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.cache.fill import sequential_batches
from fastinfogan.data.cache.storage import CacheKey, open_complete
from fastinfogan.data.decoders.base import Decoder
from fastinfogan.data.image_set import EncodedImageSet, Factors, ImageSet
from fastinfogan.errors import InputError
from fastinfogan_kernels import philox
from fastinfogan_kernels.philox import Stream

MAX_IMAGES = 10_000
"""Images taken for the evaluation of a set that is not cached, or has bad images."""
_BATCH = 128


def evaluation_subset(
    decoder: Decoder,
    decoder_of: Callable[[EncodedImageSet], Decoder],
    report: Callable[[str], object],
    most: int = MAX_IMAGES,
) -> ImageSet:
    """Return decoded images with their labels and factors: all if cached, else a fixed subset.

    Args:
        decoder: of the set.
        decoder_of: makes a decoder for the test split.
        report: called with how many images were taken, if not all, and how many are bad.
        most: images taken of each split.

    Raises:
        InputError: none of them can be decoded.
    """
    encoded = decoder.image_set
    test = None
    if encoded.test is not None:
        test = evaluation_subset(decoder_of(encoded.test), decoder_of, report, most)
    cache = open_complete(CacheKey.of(decoder), report)
    if cache is not None and not cache.bad:
        return ImageSet(encoded.name, cache.images, encoded.labels, test, encoded.factors)
    chosen = subset_indices(len(encoded), most)
    if cache is not None:
        # The replacement of a bad image does not have that image's labels and factors.
        images, good = cache.images[chosen], ~np.isin(chosen, [bad.index for bad in cache.bad])
    else:
        images, good = decode_subset(decoder, chosen)
    if not good.any():
        raise InputError(f"{encoded.name}: none of {len(chosen):,} images can be decoded")
    if len(chosen) < len(encoded) or not good.all():
        bad = f"; {(~good).sum()} of them cannot be decoded" if not good.all() else ""
        report(f"{encoded.name}: {len(chosen):,} of {len(encoded):,} images are evaluated{bad}")
    used, factors = chosen[good], encoded.factors
    if factors is not None:
        factors = Factors(factors.names, factors.values[used], factors.classes, factors.periods)
    labels = None if encoded.labels is None else encoded.labels[used]
    return ImageSet(encoded.name, images[good], labels, test, factors)


def subset_indices(count: int, most: int) -> NDArray[np.int64]:
    """Return a fixed random subset of indices, in order: int64 (min(count, most),).

    Random, because a set may be sorted by class or cycle through the classes.
    """
    # Step 2 of the stream: evaluation uses the ones before it.
    key = philox.shuffle_keys(0, 2, Stream.EVALUATION)
    return np.sort(philox.permute(np.arange(min(count, most), dtype=np.int64), count, key))


def decode_subset(
    decoder: Decoder, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Decode some images of a set; return them, and which of them could be decoded."""
    images = np.empty((len(chosen), *decoder.image_set.shape), np.uint8)
    good = np.ones(len(chosen), np.bool_)
    done = 0
    for batch in decoder.batches(chosen[rows] for rows in sequential_batches(len(chosen), _BATCH)):
        part = slice(done, done + len(batch.index))
        images[part] = batch.images
        good[part] = ~np.isin(batch.index, [bad.index for bad in batch.bad])
        done = part.stop
    return images, good


def is_annotated(images: EncodedImageSet) -> bool:
    """Return whether there are labels or factors to evaluate with."""
    parts = (images, images.test)
    return any(p is not None and (p.labels is not None or p.factors is not None) for p in parts)
