"""Where the decoded images of a set are cached, chosen by their size."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastinfogan.errors import InputError

CacheName = Literal["auto", "device", "host", "file", "off"]
Location = Literal["device", "host", "file", "off"]
PLACES = {"device": "GPU memory", "host": "memory", "file": "a file", "off": "nowhere"}

_CGROUPS = (  # version 2 and version 1: folder, limit, usage, reclaimable part of the usage
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


@dataclass(frozen=True)
class CachePolicy:
    """Where images are cached.

    Attributes:
        location: where training reads them.
        writes_file: whether a file of them is left for later runs.
        reason: in a few words.
    """

    location: Location
    writes_file: bool
    reason: str


def choose_cache_policy(
    cache: CacheName, size: int, gpu_free: int | None, folder: Path, *, is_cached: bool = False
) -> CachePolicy:
    """Choose where a set's images are cached.

    "auto" takes at most half of what is free, to leave memory for networks, other processes and
    other sets: GPU memory if the set fits into half of it; else the file; else host memory; else
    nothing is cached. The file is written if it takes at most half of the free disk space, or
    exists already. Memory requested by name must hold the set.

    Args:
        cache: what was requested.
        size: of the set, bytes.
        gpu_free: free memory of the GPU that trains, bytes; None for a CPU.
        folder: of the cache files.
        is_cached: whether the set's file exists already.

    Raises:
        InputError: the set does not fit where requested.
    """
    if cache == "off":
        return CachePolicy("off", False, "asked for: decoded again every epoch")
    if cache == "file":
        return CachePolicy("file", True, "asked for")
    host, disk, needed = available_memory(), available_disk(folder), format_size(size)
    if cache in ("device", "host"):
        gpu = gpu_free if cache == "device" else None
        free = host if gpu is None else gpu
        if size > free:
            raise InputError(
                f"`cache={cache!r}`: decoded, the images take {needed}, {format_size(free)} are "
                "free; take `cache='file'` or `cache='off'`"
            )
        return CachePolicy("host" if gpu is None else "device", False, "asked for")
    writes_file = is_cached or size <= disk // 2
    if gpu_free is not None and size <= gpu_free // 2:
        reason = f"{needed} of {format_size(gpu_free)} free on the GPU"
        return CachePolicy("device", writes_file, reason)
    if writes_file:
        where = ", there already" if is_cached else f" of {format_size(disk)} free on disk"
        return CachePolicy("file", True, needed + where)
    if size <= host // 2:
        return CachePolicy("host", False, f"{needed}; the disk has {format_size(disk)} free")
    return CachePolicy("off", False, f"{needed} fit neither on disk nor into memory")


def available_memory() -> int:
    """Return the bytes that this process may still allocate, by the machine and its cgroup."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError):
        pass
    for folder, limit, usage, reclaimable in _CGROUPS:
        try:
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            # The usage includes cached files, which the kernel drops when memory is short.
            found.append(most - used + int(stat[reclaimable]))
        except (OSError, ValueError, KeyError):
            pass  # no such cgroup, or one without a limit
    return max(min(found, default=0), 0)


def available_disk(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which may not exist; 0 if unknown."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def format_size(size: int) -> str:
    """Return a size with its unit."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
