"""Where a set's decoded images are kept, chosen by their size."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastinfogan.errors import InputError

CacheName = Literal["auto", "device", "host", "file", "off"]
Where = Literal["device", "host", "file", "off"]

_CGROUPS = (  # version 2 and version 1: where, the limit, what is taken, what of it is cold
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
    """Where images are kept.

    Attributes:
        where: they are read from in training.
        keep: whether a file of them is left for later runs.
        why: in a few words.
    """

    where: Where
    keep: bool
    why: str


def choose_cache_policy(
    asked: CacheName, size: int, gpu_free: int | None, folder: Path, *, kept: bool = False
) -> CachePolicy:
    """Settle where a set's images are kept.

    "auto" takes at most half of what is free, so that networks and maps, other processes and other
    sets have room: GPU memory if the set takes at most half of what is free of it; else the file;
    else memory; else nothing is kept. The file is written if it takes at most half of what is free
    on its disk, or is there already. Memory that is asked for by name must hold the set.

    Args:
        asked: by the caller.
        size: of the set, in bytes.
        gpu_free: bytes free on the GPU that trains; None for a CPU.
        folder: of the files.
        kept: whether the set's file is there already.

    Raises:
        InputError: the set does not fit where it was asked to be.
    """
    if asked == "off":
        return CachePolicy("off", False, "asked for: decoded again every epoch")
    host, disk = available_memory(), available_disk(folder)
    if asked == "file":
        return CachePolicy("file", True, "asked for")
    if asked in ("device", "host"):
        gpu = gpu_free is not None and asked == "device"
        free = gpu_free if gpu_free is not None and gpu else host
        if size > free:
            raise InputError(
                f"`cache={asked!r}`: decoded, the images take {format_size(size)}, "
                f"{format_size(free)} are free; take `cache='file'` or off"
            )
        return CachePolicy("device" if gpu else "host", False, "asked for")
    keep = kept or size <= disk // 2
    if gpu_free is not None and size <= gpu_free // 2:
        return CachePolicy(
            "device", keep, f"{format_size(size)} of {format_size(gpu_free)} free on the GPU"
        )
    if keep:
        why = (
            f"{format_size(size)}, there already"
            if kept
            else f"{format_size(size)} of {format_size(disk)} free on disk"
        )
        return CachePolicy("file", True, why)
    if size <= host // 2:
        return CachePolicy(
            "host", False, f"{format_size(size)}; the disk has {format_size(disk)} free"
        )
    return CachePolicy("off", False, f"{format_size(size)} fit neither on disk nor into memory")


def available_memory() -> int:
    """Bytes of memory that this process may still take, of the machine and of its cgroup."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError):
        pass
    for folder, limit, used, cold in _CGROUPS:
        try:
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            # Pages of files count as taken, though the kernel drops the cold ones when it must.
            found.append(most - taken + int(stat[cold]))
        except (OSError, ValueError, KeyError):
            pass  # no such cgroup, or one without a limit
    return max(min(found, default=0), 0)


def available_disk(folder: Path) -> int:
    """Bytes free on the disk that a folder is on, or would be; 0 if that cannot be format_size."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def format_size(size: int) -> str:
    """A size for people."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
