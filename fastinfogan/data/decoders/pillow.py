"""Decoding with Pillow, in threads.

The rules that every decoder follows:

- The first frame is decoded, upright by its EXIF orientation; unreadable EXIF is ignored.
- 16-bit grey is scaled to 8 bits, round(value / 257), so that 65535 becomes 255.
- CMYK and palettes become RGB. Transparency is dropped, the colours below it stay.
- Colour becomes grey by luminance; grey becomes colour by three equal channels.
- The crop is resized by Lanczos with antialiasing.
"""

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from fastinfogan.data.decoders.base import BadImage, DecodedBatch, Decoder, read_ahead
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageFile
from fastinfogan.errors import InputError

MAX_PIXELS = 100_000_000
"""An image of more pixels is refused as a decompression bomb."""
LARGE = 16_000_000
"""Images of more pixels are decoded one at a time."""

_DRAFT = 4  # a JPEG is decoded to at least this many times the size of the result
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
# What Pillow raises on damaged images.
_UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


_Decoded = list[NDArray[np.uint8] | BadImage]


class PillowDecoder(Decoder):
    """Decoder by Pillow, on the CPU.

    Args:
        image_set: the set.
        threads: number of threads; None for one per core that this process may use.

    Raises:
        InputError: fewer than one thread.
    """

    name = f"Pillow {PIL.__version__}"

    def __init__(self, image_set: EncodedImageSet, threads: int | None = None) -> None:
        super().__init__(image_set)
        if threads is not None and threads < 1:
            raise InputError(f"threads must be 1 or more, not {threads}")
        self._threads = threads or len(os.sched_getaffinity(0))
        self._large = threading.Lock()
        # Once, as warning filters belong to the process and not to a thread.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def batches(self, indices: Iterable[NDArray[np.int64]]) -> Generator[DecodedBatch]:
        """Decode batches in the given order; see `Decoder`."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            for index, parts in read_ahead(self._submitted(pool, indices)):
                yield self._gathered(index, parts)
        finally:
            pool.shutdown(cancel_futures=True)

    def _submitted(
        self, pool: ThreadPoolExecutor, indices: Iterable[NDArray[np.int64]]
    ) -> Iterator[tuple[NDArray[np.int64], list[Future[_Decoded]]]]:
        for index in indices:
            # Several images a task: tiny ones would cost more to hand out.
            parts = np.array_split(index, min(max(len(index), 1), 4 * self._threads))
            yield index, [pool.submit(self._some, part) for part in parts]

    def _some(self, index: NDArray[np.int64]) -> _Decoded:
        return [self._one(number) for number in index.tolist()]

    def _one(self, number: int) -> NDArray[np.uint8] | BadImage:
        file, transform = self.image_set.files[number], self.image_set.transform
        try:
            with open_image(read_bytes(file), transform) as image:
                large = image.width * image.height > LARGE
                with self._large if large else nullcontext():
                    return decode(image, transform)
        except _UNDECODABLE as error:
            return BadImage(number, file.name, _reason(error))

    def _gathered(self, index: NDArray[np.int64], parts: list[Future[_Decoded]]) -> DecodedBatch:
        images = np.zeros((len(index), *self.image_set.shape), np.uint8)
        bad = []
        for row, found in enumerate(each for part in parts for each in part.result()):
            if isinstance(found, BadImage):
                bad.append(found)
            else:
                images[row] = found
        return DecodedBatch(index, images, tuple(bad))


def read_bytes(file: ImageFile) -> bytes:
    """Read the bytes of an image.

    Raises:
        OSError: it is gone, cannot be read, or is shorter than when the set was listed.
    """
    descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, file.size, file.offset)
    finally:
        os.close(descriptor)
    if not data:
        raise OSError("an empty file")
    if len(data) < file.size:
        raise OSError(f"{len(data)} bytes are left of {file.size}")
    return data


def open_image(data: bytes, transform: CropResize) -> Image.Image:
    """Read an image's header; a large JPEG will be decoded at a reduced size.

    Raises:
        OSError, ValueError: of unknown format or too many pixels; Pillow raises others, too.
    """
    image = Image.open(io.BytesIO(data))
    shape = transform.shape
    if transform.crop is None and min(image.size) > 2 * _DRAFT * max(shape.height, shape.width):
        # At a half to an eighth: less memory at the same quality.
        image.draft(None, (_DRAFT * shape.width, _DRAFT * shape.height))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{image.width}x{image.height} pixels, more than the {MAX_PIXELS:,} allowed"
        )
    return image


def decode(image: Image.Image, transform: CropResize) -> NDArray[np.uint8]:
    """Decode an image to uint8 (height, width, channels) by the rules above.

    Raises:
        OSError, ValueError: damaged, or smaller than the crop; Pillow raises others, too.
    """
    shape = transform.shape
    image.load()
    image = _to_eight_bits(_upright(image))
    # Cropped first, so that the filter does not read pixels outside the crop.
    top, left, down, across = transform.box(image.height, image.width)
    if (across, down) != image.size:
        image = image.crop((left, top, left + across, top + down))
    image = image.convert("L" if shape.channels == 1 else "RGB")
    if image.size != (shape.width, shape.height):
        image = image.resize((shape.width, shape.height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(shape)


def _upright(image: Image.Image) -> Image.Image:
    try:
        method = _TRANSPOSE.get(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, LookupError, TypeError, OSError, EOFError, struct.error):
        method = None
    return image if method is None else image.transpose(method)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert to 8-bit grey or RGB without transparency."""
    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _reason(error: BaseException) -> str:
    """Describe an error in a few words, without the addresses in Pillow's messages."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the {MAX_PIXELS:,} allowed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
