"""Decoders of encoded images: what DALI and Pillow have in common."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastinfogan.data.image_set import EncodedImageSet, Fingerprint
from fastinfogan.errors import InputError

DecoderName = Literal["auto", "dali", "pillow"]
_AHEAD = 3  # batches
T = TypeVar("T")


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded: index and name in its set, and the reason."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class DecodedBatch:
    """A batch of decoded images.

    Attributes:
        index: int64 (n,), indices into the set, as requested.
        images: uint8 (n, height, width, channels); rows of bad images are undefined.
        bad: images that could not be decoded.
    """

    index: NDArray[np.int64]
    images: NDArray[np.uint8]
    bad: tuple[BadImage, ...] = ()


class Decoder(ABC):
    """Decoder of the images of one set.

    Attributes:
        image_set: the set.
        name: library, version and device; part of a run's fingerprint.
    """

    name: str

    def __init__(self, image_set: EncodedImageSet) -> None:
        self.image_set = image_set

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the set and the decoder."""
        return {**self.image_set.fingerprint, "decoder": self.name}

    @abstractmethod
    def batches(self, indices: Iterable[NDArray[np.int64]]) -> Generator[DecodedBatch]:
        """Decode batches in the given order.

        Args:
            indices: int64 (n,) of each batch; may be endless, and is read ahead of the results.

        Returns:
            An iterator over the batches. Closing it stops decoding.
        """


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items, each after the next three were taken: work submitted to a pool goes on."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def choose_decoder(
    name: DecoderName, image_set: EncodedImageSet, device: str, batch_size: int
) -> tuple[Decoder, str]:
    """Make a decoder.

    Args:
        name: "auto" is DALI where it works, else Pillow.
        image_set: the set.
        device: where DALI decodes: "cpu", "cuda" or "cuda:1".
        batch_size: typical number of images in a batch.

    Returns:
        The decoder, and why it was chosen, in a few words.

    Raises:
        InputError: DALI was asked for by name and does not work.
    """
    from fastinfogan.data.decoders.pillow import PillowDecoder

    if name == "pillow":
        return PillowDecoder(image_set), "asked for"
    from fastinfogan.data.decoders.dali import DaliDecoder

    try:
        decoder = DaliDecoder(image_set, device, batch_size)
    except InputError as error:
        if name == "dali":
            raise
        return PillowDecoder(image_set), str(error)
    return decoder, "works here" if name == "auto" else "asked for"
