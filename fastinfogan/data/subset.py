"""Images of a set that is not in memory, to look at or to be evaluated on."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.cache.fill import sequential_batches
from fastinfogan.data.cache.storage import CacheKey, open_complete
from fastinfogan.data.decoders.base import Decoder
from fastinfogan.data.image_set import EncodedImageSet, Factors, ImageSet
from fastinfogan.errors import InputError
from fastinfogan_kernels import shuffle
from fastinfogan_kernels.philox import Stream

MOST = 10_000
"""Images that are taken for an evaluation of a set that is not kept, or has bad pictures."""
_ROWS = 128


def sample(
    decoder: Decoder,
    decoder_of: Callable[[EncodedImageSet], Decoder],
    tell: Callable[[str], object],
    most: int = MOST,
) -> ImageSet:
    """A set's images with what is known of them: all if they are kept, else always the same few.

    Args:
        decoder: of the set.
        decoder_of: makes one for its test part.
        tell: told what was taken, if not all was, and what could not be decoded.
        most: images that are taken of each part.

    Raises:
        InputError: none of them can be decoded.
    """
    source = decoder.source
    test = None
    if source.test is not None:
        test = sample(decoder_of(source.test), decoder_of, tell, most)
    whole = open_complete(CacheKey.of(decoder), tell)
    if whole is not None and not whole.bad:
        return ImageSet(source.name, whole.images, source.labels, test, source.factors)
    chosen = subset_indices(len(source), most)
    if whole is not None:
        # What stands in for a bad picture is not what is known of it.
        images, good = whole.images[chosen], ~np.isin(chosen, [bad.index for bad in whole.bad])
    else:
        images, good = decode_subset(decoder, chosen)
    if not good.any():
        raise InputError(f"{source.name}: not one of {len(chosen):,} pictures can be decoded")
    if len(chosen) < len(source) or not good.all():
        lost = f"; {(~good).sum()} of them cannot be decoded" if not good.all() else ""
        tell(f"{source.name}: {len(chosen):,} of {len(source):,} images are taken for this{lost}")
    kept, known = chosen[good], source.factors
    factors = None
    if known is not None:
        factors = Factors(known.names, known.values[kept], known.classes, known.periods)
    labels = None if source.labels is None else source.labels[kept]
    return ImageSet(source.name, images[good], labels, test, factors)


def subset_indices(count: int, most: int) -> NDArray[np.int64]:
    """Numbers of some images of a set, always the same, in order: int64 (at most `most`,).

    By a shuffle: a set may be sorted by class, or its classes may take turns.
    """
    # Step 2 of the stream: evaluation uses the ones before it.
    key = shuffle.keys(0, 2, Stream.EVALUATION)
    place = np.arange(min(count, most), dtype=np.int64)
    return np.sort(shuffle.permute(place, count, key))


def decode_subset(
    decoder: Decoder, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Some images of a set, and which of them could be decoded."""
    images = np.empty((len(chosen), *decoder.source.shape), np.uint8)
    good = np.ones(len(chosen), np.bool_)
    done = 0
    for batch in decoder.batches(chosen[rows] for rows in sequential_batches(len(chosen), _ROWS)):
        part = slice(done, done + len(batch.index))
        images[part] = batch.images
        good[part] = ~np.isin(batch.index, [bad.index for bad in batch.bad])
        done = part.stop
    return images, good


def is_annotated(source: EncodedImageSet) -> bool:
    """Whether there are labels or factors that images could be evaluated by."""
    parts = (source, source.test)
    return any(p is not None and (p.labels is not None or p.factors is not None) for p in parts)
