"""Decoding by Pillow, in threads: any kind of picture, read from any place in a file.

How a picture becomes an image, which every decoder follows:

- The first frame counts, upright by its EXIF tag; EXIF that cannot be read turns nothing.
- 16-bit grey is scaled to 8 bits, round(value / 257), so that 65535 becomes 255.
- CMYK and palettes become RGB. Transparency is dropped, the colours below it stay.
- Colour becomes grey by luminance; grey becomes colour by three equal channels.
- The box of the recipe is cut out, then resized by Lanczos with antialiasing.
"""

import io
import os
import struct
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from fastinfogan.data.decoders.base import BadImage, DecodedBatch, Decoder
from fastinfogan.data.decoders.geometry import box
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageFile
from fastinfogan.errors import InputError

MAX_PIXELS = 100_000_000
"""That are decoded of a picture; one that announces more is taken for a decompression bomb."""
LARGE = 16_000_000
"""Pictures of more pixels are decoded one at a time."""

_AHEAD = 3  # batches that are decoded before they are asked for
_DRAFT = 4  # a JPEG is decoded to no less than so many times the image's size
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
# What Pillow ends in on damaged pictures.
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


class PillowDecoder(Decoder):
    """Decodes on the CPU.

    Args:
        source: the set.
        threads: how many decode; None for one on each core that this process may use.

    Raises:
        InputError: fewer than one thread.
    """

    name = f"Pillow {PIL.__version__}"

    def __init__(self, source: EncodedImageSet, threads: int | None = None) -> None:
        super().__init__(source)
        if threads is not None and threads < 1:
            raise InputError(f"pictures cannot be decoded by {threads} threads")
        self._threads = threads or len(os.sched_getaffinity(0))
        self._large = threading.Lock()
        # Not around each picture: the filters are the process's, and threads would mix them up.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def batches(self, wanted: Iterable[NDArray[np.int64]]) -> Generator[DecodedBatch]:
        """Decode batches, in the order in which they are wanted; see `Decoder`."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode pictures")
        waiting: deque[tuple[NDArray[np.int64], list[Future[list[NDArray[np.uint8] | BadImage]]]]]
        waiting = deque()
        try:
            for index in wanted:
                # Not one task a picture: those of a few pixels would cost more to hand out.
                parts = np.array_split(index, min(max(len(index), 1), 4 * self._threads))
                waiting.append((index, [pool.submit(self._some, part) for part in parts]))
                if len(waiting) > _AHEAD:
                    yield self._gathered(*waiting.popleft())
            while waiting:
                yield self._gathered(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _some(self, index: NDArray[np.int64]) -> list[NDArray[np.uint8] | BadImage]:
        return [self._one(number) for number in index.tolist()]

    def _one(self, number: int) -> NDArray[np.uint8] | BadImage:
        picture = self.source.pictures[number]
        try:
            with opened(read_bytes(picture), self.source.recipe) as found:
                large = found.width * found.height > LARGE
                with self._large if large else nullcontext():
                    return decoded(found, self.source.recipe)
        except _UNDECODABLE as error:
            return BadImage(number, picture.name, _reason(error))

    def _gathered(
        self, index: NDArray[np.int64], parts: list[Future[list[NDArray[np.uint8] | BadImage]]]
    ) -> DecodedBatch:
        images = np.zeros((len(index), *self.source.shape), np.uint8)
        bad = []
        for row, found in enumerate(each for part in parts for each in part.result()):
            if isinstance(found, BadImage):
                bad.append(found)
            else:
                images[row] = found
        return DecodedBatch(index, images, tuple(bad))


def read_bytes(picture: ImageFile) -> bytes:
    """A picture's bytes.

    Raises:
        OSError: it is gone, cannot be read, or is shorter than when the set was listed.
    """
    file = os.open(picture.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(file, picture.size, picture.offset)
    finally:
        os.close(file)
    if not data:
        raise OSError("an empty file")
    if len(data) < picture.size:
        raise OSError(f"{len(data)} bytes are left of {picture.size}")
    return data


def opened(data: bytes, recipe: CropResize) -> Image.Image:
    """Read a picture's header, and have a large JPEG decoded at less than its size.

    Raises:
        OSError, ValueError: it is of no kind that is known, or of too many pixels. Pillow raises
            others, too.
    """
    picture = Image.open(io.BytesIO(data))
    shape = recipe.shape
    if recipe.crop is None and min(picture.size) > 2 * _DRAFT * max(shape.height, shape.width):
        # At a half to an eighth: less memory, as good an image.
        picture.draft(None, (_DRAFT * shape.width, _DRAFT * shape.height))
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(
            f"{picture.width}x{picture.height} pixels, more than the {MAX_PIXELS:,} allowed"
        )
    return picture


def decoded(picture: Image.Image, recipe: CropResize) -> NDArray[np.uint8]:
    """Decode a picture to uint8 (height, width, channels), as this module's head tells.

    Raises:
        OSError, ValueError: it cannot be decoded, or is smaller than the recipe's box. Pillow
            raises others, too.
    """
    shape = recipe.shape
    picture.load()
    picture = _eight_bits(_upright(picture))
    # Cropped before it is resized, lest the filter reach for pixels outside the crop.
    top, left, down, across = box(recipe, picture.height, picture.width)
    if (across, down) != picture.size:
        picture = picture.crop((left, top, left + across, top + down))
    picture = picture.convert("L" if shape.channels == 1 else "RGB")
    if picture.size != (shape.width, shape.height):
        picture = picture.resize((shape.width, shape.height), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.uint8).reshape(shape)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, LookupError, TypeError, OSError, EOFError, struct.error):
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey or RGB of 8 bits, without transparency."""
    if picture.mode in _SIXTEEN_BITS:
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("pixels of floating point, whose range is not known")
    if picture.mode in ("1", "LA", "La"):
        return picture.convert("L")
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def _reason(error: BaseException) -> str:
    """In a few words, without the places in memory that Pillow's messages name."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not a picture of a kind that is known"
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the {MAX_PIXELS:,} allowed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
