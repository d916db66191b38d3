"""Decoding by NVIDIA DALI: a pipeline that is fed the wanted pictures' bytes, in our order.

What DALI would read otherwise than Pillow (see `headers`), or not at all, is left to Pillow: both
decoders accept the same pictures and agree on them.
"""

import io
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastinfogan.data.decoders.base import BadImage, DecodedBatch, Decoder
from fastinfogan.data.decoders.headers import upright_size
from fastinfogan.data.decoders.pillow import LARGE, PillowDecoder
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageFile
from fastinfogan.errors import InputError

_AHEAD = 3  # batches that are read before DALI asks for them
_DEPTH = 2  # batches inside the pipeline
_MANY = 8
"""Pictures that DALI may not refuse without exception before it is taken to be broken."""
_READERS = 2

# What DALI raises, by what went wrong inside.
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError)

Boxes = NDArray[np.int32]


@dataclass
class _Part:
    """Pictures that go through the pipeline together.

    Attributes:
        index: int64 (n,), as wanted.
        last: whether it ends what was wanted as one batch.
        rows: which of them DALI decodes.
        encoded: their bytes, uint8.
        boxes: int32 (4,) of each: top, left, height and width of what is cut out.
        images: uint8 (n, H, W, C), with Pillow's rows filled in.
        bad: those that could not be decoded.
    """

    index: NDArray[np.int64]
    last: bool
    images: NDArray[np.uint8]
    rows: list[int] = field(default_factory=list)
    encoded: list[NDArray[np.uint8]] = field(default_factory=list)
    boxes: list[Boxes] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)


class DaliDecoder(Decoder):
    """Decodes by DALI, on the CPU or, what a GPU can decode, there.

    Args:
        source: the set.
        device: "cpu", or "cuda" with or without a number.
        batch: how many pictures go through the pipeline at once; more are decoded in parts.
        threads: of DALI; None for one on each core that this process may use.

    Raises:
        InputError: DALI is not installed, or does not work here.
    """

    def __init__(
        self,
        source: EncodedImageSet,
        device: str = "cpu",
        batch: int = 128,
        threads: int | None = None,
    ) -> None:
        super().__init__(source)
        if batch < 1 or (threads is not None and threads < 1):
            raise InputError(f"a batch of {batch} pictures by {threads} threads cannot be decoded")
        self._dali = import_dali()
        kind, _, number = device.partition(":")
        self._device = None if kind == "cpu" else int(number or 0)
        self._batch = batch
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pillow = PillowDecoder(source)
        self._filler = np.frombuffer(_one_pixel(), np.uint8)
        self._whole = np.array([0, 0, 1, 1], np.int32)
        where = "the CPU" if self._device is None else "a GPU"
        self.name = f"DALI {self._dali.__version__} on {where}; {self._pillow.name} for the rest"
        try:
            self._by_pipeline([self._filler], [self._whole])
        except _FAILURES as error:
            raise InputError(f"DALI does not work on {device}: {_reason(error)}") from error

    def batches(self, wanted: Iterable[NDArray[np.int64]]) -> Generator[DecodedBatch]:
        """Decode batches, in the order in which they are wanted; see `Decoder`."""
        # Not by `with`: what is still read ahead is given up when the iterator is closed.
        readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read pictures")
        try:
            finished: list[_Part] = []
            for part in self._decoded(_read_ahead(readers, self._prepare, self._parts(wanted))):
                finished.append(part)
                if part.last:
                    yield _joined(finished)
                    finished = []
        finally:
            readers.shutdown(cancel_futures=True)

    def _parts(self, wanted: Iterable[NDArray[np.int64]]) -> Iterator[tuple[Any, ...]]:
        for index in wanted:
            count = max(len(index), 1)
            for first in range(0, count, self._batch):
                yield index[first : first + self._batch], first + self._batch >= count

    def _prepare(self, index: NDArray[np.int64], last: bool) -> _Part:
        """Read a part's pictures, and decode by Pillow what is not DALI's."""
        part = _Part(index, last, np.zeros((len(index), *self.source.shape), np.uint8))
        recipe, others = self.source.recipe, []
        for row, number in enumerate(index):
            data = _read(self.source.pictures[number])
            size = upright_size(data, recipe.shape.channels)
            box = _box(recipe, *size) if size and size[0] * size[1] <= LARGE else None
            if box is None:
                others.append(row)
                continue
            part.rows.append(row)
            part.encoded.append(np.frombuffer(data, np.uint8))
            part.boxes.append(box)
        self._by_pillow(part, others)
        return part

    def _by_pillow(self, part: _Part, rows: list[int]) -> None:
        if not rows:
            return
        found = next(iter(self._pillow.batches([part.index[rows]])))
        part.images[rows] = found.images
        part.bad.extend(found.bad)

    def _decoded(self, prepared: Iterator[_Part]) -> Iterator[_Part]:
        """Send parts through a pipeline; through another one after one has failed."""
        inside: deque[_Part] = deque()
        not_ours: list[Exception] = []
        while True:
            coming = chain(list(inside), prepared)
            inside.clear()
            feed = self._feed(coming, inside, not_ours)
            pipeline = self._pipeline(feed, self._batch, self._threads)
            try:
                while True:
                    images = _as_array(pipeline.run())
                    part = inside.popleft()
                    if part.rows:
                        part.images[part.rows] = images
                    yield part
            except StopIteration:
                if not_ours:
                    raise not_ours[0] from None
                return
            except _FAILURES as error:
                if not inside:
                    raise InputError(
                        f"{self.source.name}: DALI failed: {_reason(error)}"
                    ) from error
                part = inside.popleft()
            finally:
                _close(pipeline)
            self._one_by_one(part)
            yield part

    def _feed(
        self, coming: Iterator[_Part], inside: deque[_Part], not_ours: list[Exception]
    ) -> Iterator[tuple[list[NDArray[np.uint8]], Boxes]]:
        """Hand parts to a pipeline, keeping those that are inside, until there are no more.

        What the parts themselves raise also ends it, and is kept apart from DALI's errors.
        """
        try:
            for part in coming:
                inside.append(part)
                # A pipeline takes no empty batches.
                encoded = part.encoded or [self._filler]
                yield encoded, np.stack(part.boxes or [self._whole])
        except Exception as error:  # raised again once the pipeline is empty
            not_ours.append(error)

    def _one_by_one(self, part: _Part) -> None:
        """Decode a part that a pipeline failed on; what fails alone is left to Pillow.

        Raises:
            InputError: DALI fails on all of them, Pillow on few: it is not the pictures.
        """
        failed, told = [], ""
        for row, data, box in zip(part.rows, part.encoded, part.boxes, strict=True):
            try:
                part.images[row] = self._by_pipeline([data], [box])[0]
            except _FAILURES as error:
                failed.append(row)
                told = _reason(error)
        bad_before = len(part.bad)
        self._by_pillow(part, failed)
        refused = len(part.bad) - bad_before
        if len(failed) == len(part.rows) >= _MANY and refused < _MANY // 2:
            raise InputError(
                f"{self.source.name}: DALI fails on pictures that Pillow decodes ({told}); "
                "take `decoder='pillow'`"
            )

    def _by_pipeline(
        self, encoded: list[NDArray[np.uint8]], boxes: list[Boxes]
    ) -> NDArray[np.uint8]:
        pipeline = self._pipeline(iter([(encoded, np.stack(boxes))]), len(encoded), 1)
        try:
            return _as_array(pipeline.run())
        finally:
            _close(pipeline)

    def _pipeline(self, feed: Iterator[Any], batch: int, threads: int) -> Any:  # noqa: ANN401
        fn, types = self._dali.fn, self._dali.types
        height, width, channels = self.source.shape
        pipeline = self._dali.Pipeline(batch, threads, self._device, prefetch_queue_depth=_DEPTH)
        with pipeline:
            encoded, box = fn.external_source(
                feed, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
            )
            # hw_decoder_load 0: how many a GPU's JPEG unit takes would depend on the batch, and
            # with it the pixels.
            picture = fn.decoders.image_slice(
                encoded,
                start=box[0:2],
                shape=box[2:4],
                axis_names="HW",
                device="cpu" if self._device is None else "mixed",
                output_type=types.GRAY if channels == 1 else types.RGB,
                adjust_orientation=True,
                jpeg_fancy_upsampling=True,
                hw_decoder_load=0.0,
            )
            image = fn.resize(
                picture, size=(height, width), interp_type=types.INTERP_LANCZOS3, antialias=True
            )
            pipeline.set_outputs(image if self._device is None else image.cpu())
        pipeline.build()
        return pipeline


def import_dali() -> ModuleType:
    """DALI, imported when it is first used: it is slow to import.

    Raises:
        InputError: it is not installed, or does not import.
    """
    extras = "install fastinfogan[dali13] for CUDA 13 or fastinfogan[dali12] for CUDA 12"
    try:
        import nvidia.dali as dali
        from nvidia.dali import fn, types  # noqa: F401 - submodules, reached as attributes
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "nvidia":
            raise InputError(f"DALI is not installed; {extras}") from None
        raise InputError(f"DALI is broken: {error}; {extras}") from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise InputError(f"DALI is broken: {_reason(error)}; {extras}") from error
    if not hasattr(dali, "__version__"):
        raise InputError(f"the DALI that is installed is a placeholder; {extras}")
    module: ModuleType = dali
    return module


def _read_ahead(readers: ThreadPoolExecutor, prepare: Any, parts: Iterator[Any]) -> Iterator[_Part]:  # noqa: ANN401
    waiting: deque[Future[_Part]] = deque()
    for arguments in parts:
        waiting.append(readers.submit(prepare, *arguments))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(picture: ImageFile) -> bytes:
    """A picture's bytes; none where they cannot be read, of which Pillow tells the reason."""
    try:
        file = os.open(picture.file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = os.pread(file, picture.size, picture.offset)
    except OSError:
        return b""
    finally:
        os.close(file)
    return data if len(data) == picture.size else b""


def _box(recipe: CropResize, height: int, width: int) -> Boxes | None:
    """What is cut out of a picture: top, left, height, width; None if it is too small for it."""
    if recipe.crop:
        down, across = recipe.crop
    else:
        shape = recipe.shape
        down = min(height, max(round(width * shape.height / shape.width), 1))
        across = min(width, max(round(height * shape.width / shape.height), 1))
    if down > height or across > width:
        return None
    return np.array([(height - down) // 2, (width - across) // 2, down, across], np.int32)


def _joined(parts: list[_Part]) -> DecodedBatch:
    if len(parts) == 1:
        return DecodedBatch(parts[0].index, parts[0].images, tuple(parts[0].bad))
    return DecodedBatch(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.images for part in parts]),
        tuple(bad for part in parts for bad in part.bad),
    )


def _as_array(outputs: tuple[Any, ...]) -> NDArray[np.uint8]:
    """A view of the pipeline's images, good until it runs again."""
    array: NDArray[np.uint8] = outputs[0].as_array()
    return array


def _close(pipeline: Any) -> None:  # noqa: ANN401
    pipeline._shutdown()  # what DALI itself calls at exit; there is no public name for it


def _reason(error: BaseException) -> str:
    """The first line of DALI's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.endswith(":")]
    return (telling or lines or [type(error).__name__])[0]


def _one_pixel() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()
