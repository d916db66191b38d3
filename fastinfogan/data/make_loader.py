"""The way from a set of images to the iteration, chosen by where there is room for it."""

import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from fastinfogan.data import ImageSet
from fastinfogan.data.bad_images import BadImages, OnBadImage
from fastinfogan.data.cache.fill import fill_cache_file
from fastinfogan.data.cache.policy import (
    CacheName,
    CachePolicy,
    available_memory,
    choose_cache_policy,
    format_size,
)
from fastinfogan.data.cache.storage import (
    IN_MEMORY,
    CacheKey,
    FileCache,
    FilledMask,
    ImageCache,
    decoded_size,
    folder,
    is_cached,
    open_complete,
)
from fastinfogan.data.decoders.base import Decoder
from fastinfogan.data.loader import Loader, ResidentLoader, Sampler, StagedLoader
from fastinfogan.distributed import Distributed
from fastinfogan.errors import InputError

_COPIED_AT_ONCE = 1 << 12  # images
_MEET_EVERY = 2.0  # seconds between two signs of life of the rank that decodes for all


def make_loader(
    source: ImageSet | Decoder,
    device: torch.device,
    order: Sampler,
    cache: CacheName = "auto",
    on_bad_image: OnBadImage = "fail",
) -> Loader:
    """Choose the way from a set to the iteration.

    A set that is in memory is copied to the device; with `cache` "host" it stays in memory and is
    handed to a GPU batch by batch.

    Args:
        source: images in memory, or a set with who decodes it.
        device: of the iteration.
        order: of the images.
        cache: where decoded images are kept, see `fastinfogan.data.cache.policy`.
        on_bad_image: what is done about pictures that cannot be decoded.

    Raises:
        InputError: it does not fit where it was asked to be, or bad pictures are known and not
            to be skipped.
    """
    if isinstance(source, ImageSet):
        return _of_images(source, device, order, cache)
    key = CacheKey.of(source)
    gpu_free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    place = choose_cache_policy(
        cache, decoded_size(source), gpu_free, folder(), kept=is_cached(key)
    )
    bad_images = BadImages(source.source.name, len(source.source), on_bad_image)
    news: list[str] = []
    slots: ImageCache = FilledMask(key.shape)
    if place.where != "off":
        slots = open_complete(key, news.append) or _new_slots(key, place, news.append)
        bad_images.add(*slots.bad)
        if slots.filled.all():
            slots.finish(bad_images)  # of an earlier run that was killed before it did
    if place.where == "off" or isinstance(slots, _NoRoom):
        path = f"decoded by {source.name} at every epoch: {place.why}"
        feed: Loader = StagedLoader(
            device, path, order, source, FilledMask(key.shape), bad_images,
            shape=key.shape[1:], off=True,
        )  # fmt: skip
    else:
        feed = _of_slots(slots, device, order, source, bad_images, place)
    feed._news += news
    return feed


def describe_cache_plan(source: Decoder, device: torch.device, cache: CacheName = "auto") -> str:
    """What will be done about a set that is yet to be decoded, for people."""
    size, key = decoded_size(source), CacheKey.of(source)
    gpu_free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    place = choose_cache_policy(cache, size, gpu_free, folder(), kept=is_cached(key))
    if is_cached(key):
        return f"{format_size(size)}, decoded already, in {folder()}"
    lie = {"device": "GPU memory", "host": "memory", "file": "a file", "off": "nowhere"}
    kept = f", left in {folder()} for later runs" if place.keep else ""
    return f"{format_size(size)}, kept in {lie[place.where]} ({place.why}){kept}"


def fill_shared_cache(
    distributed: Distributed, source: Decoder, cache: CacheName, on_bad_image: OnBadImage
) -> None:
    """Have rank 0 decode the whole set into its file, which all ranks map; they wait for it.

    Where the file is not to be kept, cannot be written, or not be seen by all, each decodes for
    itself.

    Raises:
        InputError: a picture cannot be decoded, or too many cannot.
        TrainingError: another rank is gone.
    """
    if distributed.rank != 0:
        done = failed = False
        while not done:
            done, failed = distributed.any_process(False, False)
        if failed:
            raise InputError("rank 0 could not decode the images; its message says why")
        return
    met = time.monotonic()

    def meet(_: int) -> None:
        # A collective that is waited for too long fails, and decoding may take hours.
        nonlocal met
        if time.monotonic() - met >= _MEET_EVERY:
            distributed.any_process(False, False)
            met = time.monotonic()

    bad_images = BadImages(source.source.name, len(source.source), on_bad_image)
    try:
        place = choose_cache_policy(
            cache, decoded_size(source), None, folder(), kept=is_cached(CacheKey.of(source))
        )
        if place.keep:
            with suppress(OSError):  # `make_loader` finds the same, and tells it
                fill_cache_file(source, bad_images, lambda _: None, meet)
    except InputError:
        distributed.any_process(True, True)
        raise
    distributed.any_process(True, False)


def _of_images(source: ImageSet, device: torch.device, order: Sampler, cache: CacheName) -> Loader:
    if cache in ("file", "off"):
        raise InputError(
            f"`cache={cache!r}`: {source.name} holds images that are decoded already; "
            "it is for pictures in files of their own"
        )
    images = torch.from_numpy(source.images)
    if cache == "host" and device.type == "cuda":
        slots = _whole(source.images)
        bad_images = BadImages(source.name, len(source), "fail")
        path = "from memory, batch by batch: asked for"
        return StagedLoader(
            device, path, order, None, slots, bad_images, shape=source.images.shape[1:], off=False
        )
    where = "GPU memory" if device.type == "cuda" else "memory"
    return Loader(images.to(device), f"all in {where}")


def _whole(images: NDArray[np.uint8]) -> ImageCache:
    slots = FilledMask(images.shape)
    slots.images = images
    slots.filled[:] = True
    return slots


class _NoRoom(FilledMask):
    """Nothing can be kept."""


def _new_slots(key: CacheKey, place: CachePolicy, warn: Callable[[str], object]) -> ImageCache:
    size = int(np.prod(key.shape))
    if place.keep:
        try:
            return FileCache(key)
        except OSError as error:
            if place.where == "device":
                warn(f"{folder()}: {error}; the next run decodes again")
                return FilledMask(key.shape)
            if size > available_memory():
                warn(f"{folder()}: {error}; nothing is kept, memory has no room either")
                return _NoRoom(key.shape)
            warn(f"{folder()}: {error}; {IN_MEMORY}")
    return FilledMask(key.shape) if place.where == "device" else ImageCache(key.shape)


def _of_slots(
    slots: ImageCache,
    device: torch.device,
    order: Sampler,
    decoder: Decoder,
    bad_images: BadImages,
    place: CachePolicy,
) -> Loader:
    count, shape = len(slots.filled), slots.images.shape[1:]
    there = int(slots.filled.sum())
    lie = {"device": "GPU memory", "host": "memory", "file": "a file"}[place.where]
    path = f"in {lie}: {place.why}; "
    if there == count:
        path += f"decoded by an earlier run, read from {folder()}"
    else:
        path += f"decoded by {decoder.name} in the order of training"
        path += f", {there:,} of them by an earlier run" if there else ""
        path += ", kept for later runs" if isinstance(slots, FileCache) else ""
    if place.where == "device":
        full = (count, *decoder.source.shape)
        images = torch.zeros(full, dtype=torch.uint8, device=device)
        for first in range(0, count if there else 0, _COPIED_AT_ONCE):
            part = slice(first, first + _COPIED_AT_ONCE)
            images[part].copy_(torch.from_numpy(slots.images[part]))
        return ResidentLoader(images, path, order, decoder, slots, bad_images, elsewhere=True)
    if device.type == "cuda":
        return StagedLoader(
            device, path, order, decoder, slots, bad_images, shape=shape, off=False
        )  # fmt: skip
    images = torch.from_numpy(slots.images)
    return ResidentLoader(images, path, order, decoder, slots, bad_images, elsewhere=False)
