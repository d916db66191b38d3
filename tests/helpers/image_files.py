"""A minimal encoded set, one raw file per image, and its decoder."""

import io
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastinfogan.data.decoders.base import BadImage, DecodedBatch, Decoder
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageFile, ImageSet, ImageShape


def bytes_of(image: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401
    """Encode an image in a format of Pillow."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scene(seed: int = 1, height: int = 40, width: int = 60) -> Image.Image:
    """Smooth colours with texture on them."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    textured = smooth + random.integers(-10, 11, (height, width, 1), dtype=np.int16)
    return Image.fromarray(textured.clip(0, 255).astype(np.uint8))


def decode(decoder: Decoder, wanted: list[NDArray[np.int64]] | None = None) -> DecodedBatch:
    """Decode and concatenate batches; by default each image once."""
    parts = list(decoder.batches(wanted or [np.arange(len(decoder.image_set))]))
    return DecodedBatch(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.images for part in parts]),
        tuple(bad for part in parts for bad in part.bad),
    )


def check_bounded_prefetch(decoder: Decoder, at_most: int) -> None:
    """Check that batches come in order, few are asked for in advance, and closing ends threads."""
    asked = 0

    def forever() -> Iterator[NDArray[np.int64]]:
        nonlocal asked
        while True:
            asked += 1
            yield np.arange(5)[:: -1 if asked % 2 else 1]

    whole = decode(decoder, [np.arange(5)]).images
    before = threading.active_count()
    batches = decoder.batches(forever())
    for n in range(6):
        assert np.array_equal(next(batches).images, whole[:: 1 if n % 2 else -1])
    assert asked <= at_most
    batches.close()
    assert threading.active_count() == before


def exif_orientation(tag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


def encoded(source: ImageSet, folder: str = "pictures") -> EncodedImageSet:
    """Write each image of a set to a file."""
    Path(folder).mkdir(exist_ok=True)
    pictures = []
    for i, image in enumerate(source.images):
        file = Path(folder, f"{i:04d}.raw")
        file.write_bytes(image.tobytes())
        pictures.append(ImageFile(file.name, file, 0, image.nbytes))
    return EncodedImageSet(
        folder, pictures, CropResize(ImageShape(*source.images.shape[1:])), source.labels
    )


class RawDecoder(Decoder):
    """Reads the files of `encoded`; one that is too short is bad.

    Attributes:
        asked: indices of the images decoded so far.
        closed: number of iterators closed before their end.
        delay: seconds per batch.
    """

    name = "raw 1"

    def __init__(self, source: EncodedImageSet, delay: float = 0) -> None:
        super().__init__(source)
        self.asked: list[int] = []
        self.closed = 0
        self.delay = delay

    def batches(self, wanted: Iterable[NDArray[np.int64]]) -> Generator[DecodedBatch]:
        try:
            for index in wanted:
                self.asked += index.tolist()
                time.sleep(self.delay)
                images = np.full((len(index), *self.image_set.shape), 77, np.uint8)
                bad = []
                for row, i in enumerate(index.tolist()):
                    picture = self.image_set.files[i]
                    data = np.frombuffer(picture.path.read_bytes(), np.uint8)
                    if len(data) == picture.size:
                        images[row] = data.reshape(self.image_set.shape)
                    else:
                        bad.append(BadImage(i, picture.name, "cut short"))
                yield DecodedBatch(index, images, tuple(bad))
        except GeneratorExit:
            self.closed += 1
            raise
