"""Loaders: they have the real images of each iteration ready when it runs.

An iteration gathers its images by index from one tensor. If the set is in memory or on the GPU,
that is the whole set. If it is decoded for the first time, it is the same tensor, into which the
images of the coming iterations are decoded in time. Otherwise it is one batch, copied each time.

`make_loader` chooses the loader of a set by where its images fit.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastinfogan.data.bad_images import FILE, BadImages, OnBadImage
from fastinfogan.data.cache.fill import CacheFiller, Sampler, decode_batches, policy_for
from fastinfogan.data.cache.partial_file import IN_MEMORY, FileCache
from fastinfogan.data.cache.policy import PLACES, CacheName, CachePolicy, available_memory
from fastinfogan.data.cache.storage import (
    CacheKey,
    FilledMask,
    FullCache,
    ImageCache,
    cache_folder,
    open_complete,
)
from fastinfogan.data.decoders.base import DecodedBatch, Decoder
from fastinfogan.data.image_set import ImageSet
from fastinfogan.data.prefetch import Prefetcher
from fastinfogan.errors import InputError

_DECODED_AHEAD = 16  # batches
_STAGED_AHEAD = 2  # batches
_STAGING_BUFFERS = _STAGED_AHEAD + 2  # one is being written, and one is being copied
_COPIED_TOGETHER = 1 << 12  # images
_UNLIMITED = 1 << 30

Stop = Callable[[], bool]


def _never() -> bool:
    return False


class Loader(ABC):
    """The images of each iteration, ready when it runs.

    Attributes:
        images: uint8 (N, height, width, channels) on the device; with `in_order` (rows, ...).
        in_order: whether row i of `images` is row i of the batch, see `kernels.real_images`.
        iterations_per_call: iterations that can be prepared together.
        description: where images come from, for the log.
        seconds_waited: time that `prepare` took since this was last set to 0; None if it never
            waits.
    """

    in_order = False
    iterations_per_call = _UNLIMITED
    seconds_waited: float | None = None

    def __init__(self, images: Tensor, description: str, filler: CacheFiller | None = None) -> None:
        self.images = images
        self.description = description
        self.pending_messages: list[str] = []
        self._filler = filler
        self._prefetcher: Prefetcher[Any] | None = None
        self._next_step = -1
        self._listed = 0

    @abstractmethod
    def prepare(self, step: int, count: int, stop: Stop = _never) -> bool:
        """Make the images of some iterations available in `images`.

        Args:
            step: the first iteration.
            count: number of iterations, at most `iterations_per_call`.
            stop: polled while waiting; True ends the wait.

        Returns:
            Whether they are there.

        Raises:
            InputError: an image cannot be decoded, or too many cannot.
        """

    def messages(self, run: Path | None = None) -> list[str]:
        """Return what should be reported, once; bad images are listed in the run's folder."""
        found, self.pending_messages = self.pending_messages, []
        if self._filler is None:
            return found
        cache, bad = self._filler.cache, self._filler.bad_images
        if cache.warning:
            found.append(cache.warning)
            cache.warning = None
        if len(bad) > self._listed:
            self._listed = len(bad)
            where = ""
            if run is not None:
                try:
                    bad.write(run)
                    where = f"; listed in {run / FILE}"
                except OSError as error:
                    where = f"; the list cannot be written: {error}"
            found.append(
                f"{len(bad)} of {bad.count:,} images cannot be decoded and are skipped, with the "
                f"next one in their place: {bad.reasons()}{where}"
            )
        return found

    def close(self) -> None:
        """Stop decoding and release the cache."""
        self._stop()
        if self._filler is not None:
            self._filler.cache.close()

    def _stop(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None


class ResidentLoader(Loader):
    """All images in memory or on the device from the start."""

    def prepare(self, step: int, count: int, stop: Stop = _never) -> bool:
        """Return True: nothing is to be done."""
        return True


class DecodingLoader(Loader):
    """All images in one tensor, decoded ahead of the iterations that need them.

    `images` are the cache's array itself or, with `is_copy`, a copy on the device.
    """

    def __init__(
        self, images: Tensor, description: str, filler: CacheFiller, *, is_copy: bool
    ) -> None:
        super().__init__(images, description, filler)
        self.seconds_waited: float = 0.0
        self._is_copy = is_copy
        self._sampler, self._cache = filler.sampler, filler.cache
        self._batches = filler.batches
        self._array = self._cache.images
        self._present = self._cache.filled.copy()
        self._missing = int((~self._present).sum())  # counted, as a sum over the set takes time
        self._complete = self._missing == 0

    def prepare(self, step: int, count: int, stop: Stop = _never) -> bool:
        """See the base class."""
        if self._complete:
            return True
        begun = time.perf_counter()
        if self._prefetcher is None or step != self._next_step:
            self._restart(step)
        assert self._prefetcher is not None
        needed = np.concatenate([self._sampler(each) for each in range(step, step + count)])
        for _ in range(2 * count):  # bounded, and lets the thread get ahead of the iterations
            self._deliver(self._prefetcher.take(wait=False))
        while not self._present[needed].all():
            batch = self._prefetcher.take(stop)
            self._deliver(batch)
            if batch is None and stop():
                return False
        self._complete = not self._missing and self._prefetcher.ended
        self._next_step = step + count
        self.seconds_waited += time.perf_counter() - begun
        return True

    def _restart(self, step: int) -> None:
        """Decode from another iteration on; first take what was decoded and not delivered."""
        self._stop()
        cache = self._cache
        if self._is_copy and isinstance(cache, FilledMask):
            cache.filled &= self._present  # the rest is decoded again
        elif self._is_copy:
            late = np.flatnonzero(cache.filled & ~self._present)
            self._deliver(DecodedBatch(late, cache.images[late]))
        self._present |= cache.filled
        self._missing = int((~self._present).sum())
        self._prefetcher = Prefetcher(self._batches(step), _DECODED_AHEAD)

    def _deliver(self, batch: DecodedBatch | None) -> None:
        cache = self._cache
        if not self._is_copy and cache.images is not self._array:  # moved from file to memory
            self._array = cache.images
            self.images.data = torch.from_numpy(cache.images)
        if batch is None:
            return
        if self._is_copy:
            index = torch.from_numpy(batch.index).to(self.images.device)
            rows = torch.from_numpy(np.ascontiguousarray(batch.images)).to(self.images.device)
            self.images.index_copy_(0, index, rows)
        self._missing -= int((~self._present[batch.index]).sum())
        self._present[batch.index] = True


class StagedLoader(Loader):
    """One batch at a time, copied into a small tensor while the next ones are gathered.

    On a GPU the copies come from pinned memory, on the stream of the iterations. Without
    `is_cached`, images are decoded again each time.
    """

    in_order = True
    iterations_per_call = 1

    def __init__(
        self,
        device: torch.device,
        description: str,
        filler: CacheFiller,
        *,
        shape: tuple[int, ...],
        is_cached: bool = True,
    ) -> None:
        rows = len(filler.sampler.rows)
        images = torch.zeros((rows, *shape), dtype=torch.uint8, device=device)
        super().__init__(images, description, filler)
        self.seconds_waited: float = 0.0
        self._batches = _cached_batches if is_cached else _decoded_batches
        cuda = device.type == "cuda"
        self._buffers = [torch.empty_like(images, device="cpu") for _ in range(_STAGING_BUFFERS)]
        if cuda:
            self._buffers = [buffer.pin_memory() for buffer in self._buffers]
        self._copied = [_event() if cuda else None for _ in self._buffers]

    def prepare(self, step: int, count: int, stop: Stop = _never) -> bool:
        """See the base class."""
        begun = time.perf_counter()
        if self._prefetcher is None or step != self._next_step:
            self._stop()
            self._prefetcher = Prefetcher(self._staged(step), _STAGED_AHEAD)
        number = self._prefetcher.take(stop)
        if number is None:
            return False
        self.images.copy_(self._buffers[number], non_blocking=True)
        event = self._copied[number]
        if event is not None:
            event.record()
        self._next_step = step + 1
        self.seconds_waited += time.perf_counter() - begun
        return True

    def _staged(self, step: int) -> Generator[int]:
        """Write batches into the buffers; yields the number of the buffer."""
        filler = self._filler
        assert filler is not None
        for batch, rows in enumerate(self._batches(filler, step)):
            number = batch % _STAGING_BUFFERS
            event = self._copied[number]
            if event is not None:
                event.synchronize()
            self._buffers[number].numpy()[:] = rows
            yield number


def _decoded_batches(filler: CacheFiller, step: int) -> Generator[NDArray[np.uint8]]:
    """Decode the images of an iteration and all that follow."""
    assert filler.decoder is not None
    indices = filler.sampler.since(step)
    for batch in decode_batches(filler.decoder, indices, filler.bad_images):
        yield batch.images


def _cached_batches(filler: CacheFiller, step: int) -> Generator[NDArray[np.uint8]]:
    """Gather the images of an iteration and all that follow, filling the cache meanwhile."""
    cache, filling = filler.cache, filler.batches(step)
    missing = int((~cache.filled).sum())
    for index in filler.sampler.since(step):
        while missing and not cache.filled[index].all():
            missing -= len(next(filling).index)
            if not missing:
                next(filling, None)  # finishes the cache
        yield cache.images[index]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def make_loader(
    images: ImageSet | Decoder,
    device: torch.device,
    sampler: Sampler,
    cache: CacheName = "auto",
    on_bad_image: OnBadImage = "fail",
) -> Loader:
    """Make the loader of a set.

    A set in memory is copied to the device; with `cache` "host" it stays in memory and is copied
    to a GPU batch by batch.

    Args:
        images: in memory, or the decoder of an encoded set.
        device: of the iterations.
        sampler: the order of the images.
        cache: where decoded images are cached, see `fastinfogan.data.cache.policy`.
        on_bad_image: what to do about images that cannot be decoded.

    Raises:
        InputError: the set does not fit where requested, or bad images are known and `on_bad_image`
            is "fail".
    """
    if isinstance(images, ImageSet):
        return _of_image_set(images, device, sampler, cache)
    encoded, key, policy = images.image_set, CacheKey.of(images), policy_for(images, device, cache)
    messages: list[str] = []
    opened = None
    if policy.location != "off":
        opened = open_complete(key, messages.append) or _new_cache(key, policy, messages)
    bad_images = BadImages(encoded.name, len(encoded), on_bad_image)
    filler = CacheFiller(sampler, images, opened or FilledMask(key.shape), bad_images)
    loader: Loader
    if opened is None:
        description = f"decoded by {images.name} at every epoch: {policy.reason}"
        loader = StagedLoader(device, description, filler, shape=encoded.shape, is_cached=False)
    else:
        bad_images.add(*opened.bad)
        if opened.filled.all():
            opened.finish(bad_images)  # an earlier run was killed before it did
        loader = _of_cache(filler, device, policy)
    loader.pending_messages += messages
    return loader


def _of_image_set(
    source: ImageSet, device: torch.device, sampler: Sampler, cache: CacheName
) -> Loader:
    if cache in ("file", "off"):
        raise InputError(
            f"`cache={cache!r}`: {source.name} holds images that are decoded already; "
            "it applies to encoded images only"
        )
    if cache == "host" and device.type == "cuda":
        bad_images = BadImages(source.name, len(source), "fail")
        filler = CacheFiller(sampler, None, FullCache(source.images), bad_images)
        description = "from memory, batch by batch: asked for"
        return StagedLoader(device, description, filler, shape=source.shape)
    where = "GPU memory" if device.type == "cuda" else "memory"
    return ResidentLoader(torch.from_numpy(source.images).to(device), f"all in {where}")


def _new_cache(key: CacheKey, policy: CachePolicy, messages: list[str]) -> ImageCache | None:
    """Make an empty cache; None if neither disk nor memory holds the set."""
    if policy.writes_file:
        try:
            return FileCache(key)
        except OSError as error:
            failed = f"{cache_folder()}: {error}"
        if policy.location == "device":
            messages.append(f"{failed}; the next run decodes the images again")
        elif torch.Size(key.shape).numel() > available_memory():
            messages.append(f"{failed}; nothing is cached, as memory has no room either")
            return None
        else:
            messages.append(f"{failed}; {IN_MEMORY}")
    return FilledMask(key.shape) if policy.location == "device" else ImageCache(key.shape)


def _of_cache(filler: CacheFiller, device: torch.device, policy: CachePolicy) -> Loader:
    cache, decoder = filler.cache, filler.decoder
    assert decoder is not None
    count, present = len(cache.filled), int(cache.filled.sum())
    description = f"in {PLACES[policy.location]}: {policy.reason}; "
    if present == count:
        description += f"decoded by an earlier run, read from {cache_folder()}"
    else:
        description += f"decoded by {decoder.name} in the order of training"
        description += f", {present:,} of them by an earlier run" if present else ""
        description += ", cached for later runs" if isinstance(cache, FileCache) else ""
    if policy.location == "device":
        full = (count, *decoder.image_set.shape)
        images = torch.zeros(full, dtype=torch.uint8, device=device)
        for first in range(0, count if present else 0, _COPIED_TOGETHER):
            part = slice(first, first + _COPIED_TOGETHER)
            images[part].copy_(torch.from_numpy(cache.images[part]))
        return DecodingLoader(images, description, filler, is_copy=True)
    if device.type == "cuda":
        return StagedLoader(device, description, filler, shape=cache.images.shape[1:])
    images = torch.from_numpy(cache.images)
    return DecodingLoader(images, description, filler, is_copy=False)
