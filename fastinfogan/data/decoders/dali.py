"""Decoding with NVIDIA DALI: a pipeline that is given the bytes of the requested images, in order.

What DALI would decode differently from Pillow (see `headers`), or not at all, is left to Pillow, so
that both decoders accept the same images with the same results.
"""

import io
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastinfogan.data.decoders.base import BadImage, DecodedBatch, Decoder, read_ahead
from fastinfogan.data.decoders.headers import upright_size
from fastinfogan.data.decoders.pillow import LARGE, PillowDecoder, read_bytes
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageFile
from fastinfogan.errors import InputError, install

_DEPTH = 2  # batches inside the pipeline
_MANY = 8
"""DALI is taken to be broken when it fails on all of at least this many good images."""
_READERS = 2

# What DALI raises, depending on what failed.
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError)

Boxes = NDArray[np.int32]


@dataclass
class _Part:
    """Images that go through the pipeline together: a batch, or a part of a large one.

    Attributes:
        index: int64 (n,), as requested.
        last: whether it is the last part of its batch.
        images: uint8 (n, H, W, C), with Pillow's rows filled in.
        rows: which of them DALI decodes.
        encoded: their bytes, uint8.
        boxes: int32 (4,) of each: top, left, height and width of the crop.
        bad: images that could not be decoded.
    """

    index: NDArray[np.int64]
    last: bool
    images: NDArray[np.uint8]
    rows: list[int] = field(default_factory=list)
    encoded: list[NDArray[np.uint8]] = field(default_factory=list)
    boxes: list[Boxes] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)


class DaliDecoder(Decoder):
    """Decoder by DALI, on the CPU or partly on a GPU.

    Args:
        image_set: the set.
        device: "cpu", or "cuda" with or without a number.
        batch: images in the pipeline at once; larger batches are decoded in parts.
        threads: of DALI; None for one per core that this process may use.

    Raises:
        InputError: DALI is not installed, or does not work here.
    """

    def __init__(
        self,
        image_set: EncodedImageSet,
        device: str = "cpu",
        batch: int = 128,
        threads: int | None = None,
    ) -> None:
        super().__init__(image_set)
        if batch < 1 or (threads is not None and threads < 1):
            raise InputError(f"batch and threads must be 1 or more, not {batch} and {threads}")
        self._dali = import_dali()
        kind, _, number = device.partition(":")
        self._device = None if kind == "cpu" else int(number or 0)
        self._batch = batch
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pillow = PillowDecoder(image_set)
        self._filler = np.frombuffer(_one_pixel(), np.uint8)
        self._whole = np.array([0, 0, 1, 1], np.int32)
        where = "the CPU" if self._device is None else "a GPU"
        self.name = f"DALI {self._dali.__version__} on {where}; {self._pillow.name} for the rest"
        try:
            self._decode_with_dali([self._filler], [self._whole])
        except _FAILURES as error:
            raise InputError(f"DALI does not work on {device}: {_reason(error)}") from error

    def batches(self, indices: Iterable[NDArray[np.int64]]) -> Generator[DecodedBatch]:
        """Decode batches in the given order; see `Decoder`."""
        # Not a `with` block: pending reads are cancelled when the iterator is closed.
        readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read images")
        try:
            finished: list[_Part] = []
            parts = (readers.submit(self._prepare, *part) for part in self._parts(indices))
            for part in self._decoded(each.result() for each in read_ahead(parts)):
                finished.append(part)
                if part.last:
                    yield _concatenate(finished)
                    finished = []
        finally:
            readers.shutdown(cancel_futures=True)

    def _parts(
        self, indices: Iterable[NDArray[np.int64]]
    ) -> Iterator[tuple[NDArray[np.int64], bool]]:
        for index in indices:
            count = max(len(index), 1)
            for first in range(0, count, self._batch):
                yield index[first : first + self._batch], first + self._batch >= count

    def _prepare(self, index: NDArray[np.int64], last: bool) -> _Part:
        """Read the images of a part, and decode with Pillow what is not for DALI."""
        part = _Part(index, last, np.zeros((len(index), *self.image_set.shape), np.uint8))
        transform, others = self.image_set.transform, []
        for row, number in enumerate(index):
            data = _read(self.image_set.files[number])
            size = upright_size(data, transform.shape.channels)
            box = _box(transform, *size) if size and size[0] * size[1] <= LARGE else None
            if box is None:
                others.append(row)
                continue
            part.rows.append(row)
            part.encoded.append(np.frombuffer(data, np.uint8))
            part.boxes.append(box)
        self._decode_with_pillow(part, others)
        return part

    def _decode_with_pillow(self, part: _Part, rows: list[int]) -> None:
        if not rows:
            return
        found = next(iter(self._pillow.batches([part.index[rows]])))
        part.images[rows] = found.images
        part.bad.extend(found.bad)

    def _decoded(self, prepared: Iterator[_Part]) -> Iterator[_Part]:
        """Send parts through a pipeline; after a failure, through a new one."""
        inside: deque[_Part] = deque()
        input_errors: list[Exception] = []
        while True:
            coming = chain(list(inside), prepared)
            inside.clear()
            source = self._pipeline_input(coming, inside, input_errors)
            pipeline = self._pipeline(source, self._batch, self._threads)
            try:
                while True:
                    images = _as_array(pipeline.run())
                    part = inside.popleft()
                    if part.rows:
                        part.images[part.rows] = images
                    yield part
            except StopIteration:
                if input_errors:
                    raise input_errors[0] from None
                return
            except _FAILURES as error:
                if not inside:
                    raise InputError(
                        f"{self.image_set.name}: DALI failed: {_reason(error)}"
                    ) from error
                part = inside.popleft()
            finally:
                _close(pipeline)
            self._decode_singly(part)
            yield part

    def _pipeline_input(
        self, coming: Iterator[_Part], inside: deque[_Part], input_errors: list[Exception]
    ) -> Iterator[tuple[list[NDArray[np.uint8]], Boxes]]:
        """Yield the parts as a pipeline's input; `inside` holds those that are in the pipeline.

        An error raised by the parts themselves is stored in `input_errors`, apart from DALI's.
        """
        try:
            for part in coming:
                inside.append(part)
                # A pipeline accepts no empty batches.
                encoded = part.encoded or [self._filler]
                yield encoded, np.stack(part.boxes or [self._whole])
        except Exception as error:  # raised again once the pipeline is empty
            input_errors.append(error)

    def _decode_singly(self, part: _Part) -> None:
        """Decode a part that a pipeline failed on, each image alone, else with Pillow.

        Raises:
            InputError: DALI fails on all of them and Pillow on few, so DALI is broken.
        """
        failed, reason = [], ""
        for row, data, box in zip(part.rows, part.encoded, part.boxes, strict=True):
            try:
                part.images[row] = self._decode_with_dali([data], [box])[0]
            except _FAILURES as error:
                failed.append(row)
                reason = _reason(error)
        bad_before = len(part.bad)
        self._decode_with_pillow(part, failed)
        refused = len(part.bad) - bad_before
        if len(failed) == len(part.rows) >= _MANY and refused < _MANY // 2:
            raise InputError(
                f"{self.image_set.name}: DALI fails on images that Pillow decodes ({reason}); "
                "take `decoder='pillow'`"
            )

    def _decode_with_dali(
        self, encoded: list[NDArray[np.uint8]], boxes: list[Boxes]
    ) -> NDArray[np.uint8]:
        pipeline = self._pipeline(iter([(encoded, np.stack(boxes))]), len(encoded), 1)
        try:
            return _as_array(pipeline.run())
        finally:
            _close(pipeline)

    def _pipeline(self, source: Iterator[Any], batch: int, threads: int) -> Any:  # noqa: ANN401
        fn, types = self._dali.fn, self._dali.types
        height, width, channels = self.image_set.shape
        pipeline = self._dali.Pipeline(batch, threads, self._device, prefetch_queue_depth=_DEPTH)
        with pipeline:
            encoded, box = fn.external_source(
                source, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
            )
            # hw_decoder_load 0: otherwise the share of the JPEG unit, and so the pixels, depend on
            # the batch.
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
    """Import DALI, which is slow, when it is first needed.

    Raises:
        InputError: it is not installed, or does not import.
    """
    extras = f"{install('dali13')} for CUDA 13, 'fastinfogan[dali12]' for CUDA 12"
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


def _read(file: ImageFile) -> bytes:
    """Read an image's bytes; none if that fails, for which Pillow will report the reason."""
    try:
        return read_bytes(file)
    except OSError:
        return b""


def _box(transform: CropResize, height: int, width: int) -> Boxes | None:
    """Return top, left, height and width of the crop; None for an image smaller than it."""
    try:
        return np.array(transform.box(height, width), np.int32)
    except ValueError:
        return None


def _concatenate(parts: list[_Part]) -> DecodedBatch:
    if len(parts) == 1:
        return DecodedBatch(parts[0].index, parts[0].images, tuple(parts[0].bad))
    return DecodedBatch(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.images for part in parts]),
        tuple(bad for part in parts for bad in part.bad),
    )


def _as_array(outputs: tuple[Any, ...]) -> NDArray[np.uint8]:
    """Return a view of the pipeline's images, valid until it runs again."""
    array: NDArray[np.uint8] = outputs[0].as_array()
    return array


def _close(pipeline: Any) -> None:  # noqa: ANN401
    pipeline._shutdown()  # what DALI calls at exit; there is no public method


def _reason(error: BaseException) -> str:
    """Return the first informative line of DALI's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [line for line in lines if not line.endswith(":")]
    return (informative or lines or [type(error).__name__])[0]


def _one_pixel() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()
