"""What the iteration gathers its real images from, and that they are there in time.

A set in memory, or on the GPU, is one tensor from which the program gathers by itself. A set that
is decoded for the first time is the same tensor: the images of the coming iterations are decoded in
their order, each into its own slot, before the iteration that needs it runs. So nothing is switched
when the last slot is filled. A set that lies elsewhere is handed over batch by batch.
"""

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastinfogan.data.bad_images import FILE, BadImages
from fastinfogan.data.cache.fill import decoded, fill
from fastinfogan.data.cache.storage import FilledMask, ImageCache
from fastinfogan.data.decoders.base import DecodedBatch, Decoder
from fastinfogan.data.prefetch import Prefetcher
from fastinfogan_kernels import shuffle

_AHEAD = 16  # batches that are decoded ahead
_STAGED_AHEAD = 2  # batches that are copied ahead
_BUFFERS = _STAGED_AHEAD + 2  # and one being written, and one being copied
_ALL = 1 << 30

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Which images this process takes at each iteration.

    Attributes:
        seed: of the run.
        count: images in the set.
        batch: rows of all ranks.
        rows: of the batch that are this rank's.
    """

    seed: int
    count: int
    batch: int
    rows: range

    def __call__(self, step: int) -> Index:
        """Of one iteration: int64 (rows,)."""
        first = step * self.batch + self.rows.start
        return shuffle.indices(self.seed, first, len(self.rows), self.count)

    def since(self, step: int) -> Iterator[Index]:
        """Of all iterations from one on."""
        return (self(each) for each in itertools.count(step))


class Loader:
    """A set in memory, as it is.

    Args:
        images: uint8 (N, height, width, channels), or with `in_order` (rows, ...), on the device.

    Attributes:
        images: as given.
        in_order: whether row i of `images` is row i of the batch, see `kernels.real_images`.
        at_once: iterations that can be prepared together.
        seconds_waited: seconds that `prepare` has waited for images; None where it never does.
        path: which way images go, for people.
    """

    in_order = False
    at_once = _ALL
    seconds_waited: float | None = None

    def __init__(self, images: Tensor, path: str) -> None:
        self.images = images
        self.path = path
        self.bad_images: BadImages | None = None
        self._slots: ImageCache | None = None
        self._news: list[str] = []
        self._listed = 0

    def prepare(self, step: int, count: int, stop: Callable[[], bool] = lambda: False) -> bool:
        """Have the images of some iterations where the program looks for them.

        Args:
            step: the first iteration.
            count: how many, `at_once` at the most.
            stop: asked while waiting; a true answer ends it.

        Returns:
            Whether they are there.

        Raises:
            InputError: a picture cannot be decoded, or too many cannot.
        """
        return True

    def messages(self, run: Path | None = None) -> list[str]:
        """What is to be told, once; bad pictures are listed in the run's folder."""
        told, self._news = self._news, []
        if self._slots is not None and self._slots.warning:
            told.append(self._slots.warning)
            self._slots.warning = None
        bad = self.bad_images
        if bad is not None and len(bad) > self._listed:
            self._listed = len(bad)
            where = ""
            if run is not None:
                try:
                    bad.write(run)
                    where = f"; listed in {run / FILE}"
                except OSError as error:
                    where = f"; they cannot be listed: {error}"
            told.append(
                f"{len(bad)} of {bad.count:,} pictures cannot be decoded and are skipped, the next "
                f"one standing in: {bad.reasons()}{where}"
            )
        return told

    def close(self) -> None:
        """Stop what works ahead."""


class _Decoding(Loader):
    """What feeds of encoded sets share."""

    def __init__(
        self,
        images: Tensor,
        path: str,
        order: Sampler,
        decoder: Decoder | None,
        slots: ImageCache,
        bad_images: BadImages,
    ) -> None:
        super().__init__(images, path)
        self.bad_images = bad_images
        self.seconds_waited = 0.0
        self._order, self._decoder, self._slots = order, decoder, slots
        self._next = -1
        self._ahead: Prefetcher[Any] | None = None

    def _filling(self, step: int) -> Generator[DecodedBatch]:
        """Decode what is not there yet from an iteration on, and keep it when all is there."""
        assert self._decoder is not None
        assert self._slots is not None
        assert self.bad_images is not None
        if not self._slots.filled.all():
            orders = self._order.since(step)
            yield from fill(self._decoder, self._slots, orders, self.bad_images)
            self._slots.finish(self.bad_images)

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def close(self) -> None:
        """See the base class."""
        self._stop()
        if self._slots is not None:
            self._slots.close()


class ResidentLoader(_Decoding):
    """All images in one tensor, whose slots are filled ahead of the iterations that need them."""

    def __init__(
        self,
        images: Tensor,
        path: str,
        order: Sampler,
        decoder: Decoder,
        slots: ImageCache,
        bad_images: BadImages,
        *,
        elsewhere: bool,
    ) -> None:
        super().__init__(images, path, order, decoder, slots, bad_images)
        self._elsewhere = elsewhere  # the tensor is a copy of the slots, not the slots themselves
        self._array = slots.images
        self._there = slots.filled.copy()
        self._left = int((~self._there).sum())  # counted: looking at all slots takes its time
        self._complete = self._left == 0

    def prepare(self, step: int, count: int, stop: Callable[[], bool] = lambda: False) -> bool:
        """See the base class."""
        if self._complete:
            return True
        begun = time.perf_counter()
        if self._ahead is None or step != self._next:
            self._stop()
            self._catch_up()
            self._ahead = Prefetcher(self._filling(step), _AHEAD)
        needed = np.concatenate([self._order(each) for each in range(step, step + count)])
        for _ in range(2 * count):  # lets the thread gain on the iterations, and not without end
            self._deliver(self._ahead.take(wait=False))
        while not self._there[needed].all():
            batch = self._ahead.take(stop)
            self._deliver(batch)
            if batch is None and stop():
                return False
        if not self._left and self._ahead.ended:
            self._complete = True
        self._next = step + count
        assert self.seconds_waited is not None
        self.seconds_waited += time.perf_counter() - begun
        return True

    def _slots_now(self) -> ImageCache:
        assert self._slots is not None
        return self._slots

    def _catch_up(self) -> None:
        """Take what is in its slots, and was not handed over before the thread was stopped."""
        slots = self._slots_now()
        if self._elsewhere and isinstance(slots, FilledMask):
            slots.filled &= self._there  # decoded again
        elif self._elsewhere:
            late = np.flatnonzero(slots.filled & ~self._there)
            self._deliver(DecodedBatch(late, slots.images[late]))
        self._there |= slots.filled
        self._left = int((~self._there).sum())

    def _deliver(self, batch: DecodedBatch | None) -> None:
        slots = self._slots_now()
        if not self._elsewhere and slots.images is not self._array:  # from the file into memory
            self._array = slots.images
            self.images.data = torch.from_numpy(slots.images)
        if batch is None:
            return
        if self._elsewhere:
            index = torch.from_numpy(batch.index).to(self.images.device)
            rows = torch.from_numpy(np.ascontiguousarray(batch.images)).to(self.images.device)
            self.images.index_copy_(0, index, rows)
        self._left -= int((~self._there[batch.index]).sum())
        self._there[batch.index] = True


class StagedLoader(_Decoding):
    """A batch at a time, copied into a small tensor; the next ones are gathered meanwhile.

    On a GPU the copies come from pinned memory and go in the order of the stream on which the
    iterations run.
    """

    in_order = True
    at_once = 1

    def __init__(
        self,
        device: torch.device,
        path: str,
        order: Sampler,
        decoder: Decoder | None,
        slots: ImageCache,
        bad_images: BadImages,
        *,
        shape: tuple[int, ...],
        off: bool,
    ) -> None:
        images = torch.zeros((len(order.rows), *shape), dtype=torch.uint8, device=device)
        super().__init__(images, path, order, decoder, slots, bad_images)
        self._off = off
        cuda = device.type == "cuda"
        self._buffers = [torch.empty_like(images, device="cpu") for _ in range(_BUFFERS)]
        if cuda:
            self._buffers = [buffer.pin_memory() for buffer in self._buffers]
        self._copied = [_event() if cuda else None for _ in self._buffers]

    def prepare(self, step: int, count: int, stop: Callable[[], bool] = lambda: False) -> bool:
        """See the base class."""
        begun = time.perf_counter()
        if self._ahead is None or step != self._next:
            self._stop()
            self._ahead = Prefetcher(self._items(step), _STAGED_AHEAD)
        number = self._ahead.take(stop)
        if number is None:
            return False
        self.images.copy_(self._buffers[number], non_blocking=True)
        event = self._copied[number]
        if event is not None:
            event.record()
        self._next = step + 1
        assert self.seconds_waited is not None
        self.seconds_waited += time.perf_counter() - begun
        return True

    def _items(self, step: int) -> Generator[int]:
        for turn, rows in enumerate(self._batches(step)):
            number = turn % _BUFFERS
            event = self._copied[number]
            if event is not None:
                event.synchronize()
            self._buffers[number].numpy()[:] = rows
            yield number

    def _batches(self, step: int) -> Generator[NDArray[np.uint8]]:
        assert self._slots is not None
        assert self.bad_images is not None
        if self._off:
            assert self._decoder is not None
            for batch in decoded(self._decoder, self._order.since(step), self.bad_images):
                yield batch.images
        filling, left = self._filling(step), int((~self._slots.filled).sum())
        for index in self._order.since(step):
            while left and not self._slots.filled[index].all():
                left -= len(next(filling).index)
                if not left:
                    next(filling, None)  # has the slots kept
            yield self._slots.images[index]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
