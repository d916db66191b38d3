"""What turns encoded pictures into images, be it DALI or Pillow."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.image_set import EncodedImageSet, Fingerprint, ImageSet
from fastinfogan.errors import InputError

DecoderName = Literal["auto", "dali", "pillow"]


@dataclass(frozen=True)
class BadImage:
    """A picture that cannot be decoded.

    Attributes:
        index: its number in the set.
        name: as the set names it.
        reason: in a few words.
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class DecodedBatch:
    """Some decoded images of a set.

    Attributes:
        index: int64 (n,), their numbers in the set, as they were wanted.
        images: uint8 (n, height, width, channels); the rows of bad ones hold nothing of meaning.
        bad: those that could not be decoded.
    """

    index: NDArray[np.int64]
    images: NDArray[np.uint8]
    bad: tuple[BadImage, ...] = ()


class Decoder(ABC):
    """Decodes one set's pictures.

    Args:
        source: the set.

    Attributes:
        source: as given.
        name: who decodes, with its version and its device: a part of a run's fingerprint.
    """

    name: str

    def __init__(self, source: EncodedImageSet) -> None:
        self.source = source

    @property
    def fingerprint(self) -> Fingerprint:
        """The set's, and who decodes it."""
        return {**self.source.fingerprint, "decoder": self.name}

    @abstractmethod
    def batches(self, wanted: Iterable[NDArray[np.int64]]) -> Iterator[DecodedBatch]:
        """Decode batches, in the order in which they are wanted.

        Args:
            wanted: int64 (n,), numbers in the set; may never end, and is read ahead.

        Returns:
            A batch for each. Closing the iterator stops what works ahead.
        """


def decode_image_set(
    source: EncodedImageSet, decoder: Callable[[EncodedImageSet], Decoder]
) -> ImageSet:
    """Decode a small set at once, its test part too.

    Args:
        source: the set.
        decoder: makes one for a set, as `PillowDecoder` does.

    Raises:
        InputError: a picture cannot be decoded.
    """
    images = np.empty((len(source), *source.shape), np.uint8)
    parts = np.array_split(np.arange(len(source)), -(-len(source) // 128))
    for batch in decoder(source).batches(parts):
        if batch.bad:
            first = batch.bad[0]
            raise InputError(f"{source.name}: {first.name} cannot be decoded: {first.reason}")
        images[batch.index] = batch.images
    test = None if source.test is None else decode_image_set(source.test, decoder)
    return ImageSet(source.name, images, source.labels, test, source.factors)
