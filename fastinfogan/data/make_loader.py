"""Choose the loader of a run by where its images fit."""

import time
from contextlib import suppress

import torch

from fastinfogan.data.bad_images import BadImages, OnBadImage
from fastinfogan.data.cache.fill import fill_cache_file
from fastinfogan.data.cache.partial_file import IN_MEMORY, FileCache
from fastinfogan.data.cache.policy import (
    CacheName,
    CachePolicy,
    available_memory,
    choose_cache_policy,
    format_size,
)
from fastinfogan.data.cache.storage import (
    CacheKey,
    FilledMask,
    FullCache,
    ImageCache,
    cache_folder,
    decoded_size,
    open_complete,
)
from fastinfogan.data.decoders.base import Decoder
from fastinfogan.data.image_set import ImageSet
from fastinfogan.data.loader import (
    CacheFiller,
    DecodingLoader,
    Loader,
    ResidentLoader,
    Sampler,
    StagedLoader,
)
from fastinfogan.distributed import Distributed
from fastinfogan.errors import InputError

_COPIED_TOGETHER = 1 << 12  # images
_SYNC_EVERY = 2.0  # seconds between two collectives while rank 0 decodes for all


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
    encoded, key, policy = images.image_set, CacheKey.of(images), _policy(images, device, cache)
    filler = CacheFiller(
        sampler,
        images,
        FilledMask(key.shape),
        BadImages(encoded.name, len(encoded), on_bad_image),
    )
    messages: list[str] = []
    if policy.location != "off":
        opened = open_complete(key, messages.append) or _new_cache(key, policy, messages)
        if opened is not None:
            filler.cache = opened
            filler.bad_images.add(*opened.bad)
            if opened.filled.all():
                opened.finish(filler.bad_images)  # an earlier run was killed before it did
            loader = _of_cache(filler, device, policy)
            loader.pending_messages += messages
            return loader
    description = f"decoded by {images.name} at every epoch: {policy.reason}"
    loader = StagedLoader(device, description, filler, shape=encoded.shape, is_cached=False)
    loader.pending_messages += messages
    return loader


def describe_cache_plan(decoder: Decoder, device: torch.device, cache: CacheName = "auto") -> str:
    """Describe where a set's decoded images would be cached."""
    size = format_size(decoded_size(decoder))
    if CacheKey.of(decoder).is_cached():
        return f"{size}, decoded already, in {cache_folder()}"
    policy = _policy(decoder, device, cache)
    places = {"device": "GPU memory", "host": "memory", "file": "a file", "off": "nowhere"}
    file = f", written to {cache_folder()} for later runs" if policy.writes_file else ""
    return f"{size}, cached in {places[policy.location]} ({policy.reason}){file}"


def fill_shared_cache(
    distributed: Distributed, decoder: Decoder, cache: CacheName, on_bad_image: OnBadImage
) -> None:
    """Let rank 0 decode the whole set into its cache file, which all ranks map; they wait for it.

    If the file is not to be written, or cannot be, each rank decodes for itself.

    Raises:
        InputError: an image cannot be decoded, or too many cannot.
        TrainingError: another rank has died.
    """
    if distributed.rank != 0:
        done = failed = False
        while not done:
            done, failed = distributed.any_process(False, False)
        if failed:
            raise InputError("rank 0 could not decode the images; its message says why")
        return
    last = time.monotonic()

    def synchronise(_: int) -> None:
        # A collective that is waited for too long fails, and decoding may take hours.
        nonlocal last
        if time.monotonic() - last >= _SYNC_EVERY:
            distributed.any_process(False, False)
            last = time.monotonic()

    encoded = decoder.image_set
    bad_images = BadImages(encoded.name, len(encoded), on_bad_image)
    try:
        if _policy(decoder, torch.device("cpu"), cache).writes_file:
            with suppress(OSError):  # `make_loader` will find and report the same
                fill_cache_file(decoder, bad_images, lambda _: None, synchronise)
    except InputError:
        distributed.any_process(True, True)
        raise
    distributed.any_process(True, False)


def _policy(decoder: Decoder, device: torch.device, cache: CacheName) -> CachePolicy:
    gpu_free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    is_cached = CacheKey.of(decoder).is_cached()
    size = decoded_size(decoder)
    return choose_cache_policy(cache, size, gpu_free, cache_folder(), is_cached=is_cached)


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
    where = {"device": "GPU memory", "host": "memory", "file": "a file"}[policy.location]
    description = f"in {where}: {policy.reason}; "
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
