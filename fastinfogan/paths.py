"""Folders of what can be made again: decoded images, rendered sets, compiled programs."""

import os
import tempfile
from pathlib import Path

_COMPILED = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def cache_directory() -> Path:
    """Return $XDG_CACHE_HOME/fastinfogan, or ~/.cache/fastinfogan.

    Without a home directory, as in some containers, a folder in the system's temporary one.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "fastinfogan"
    except RuntimeError:
        return _temporary()


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"fastinfogan-{os.getuid()}"


def _writable(folder: Path) -> bool:
    """Return whether a folder can be written to, or made."""
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except OSError:
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def compiled_folders() -> tuple[Path, Path]:
    """Return the folders of Inductor's programs and of Triton's kernels.

    From the environment; else in the cache, if it can be written to; else in the system's temporary
    folder, which is torch's default.
    """
    cache = cache_directory()
    base = cache if _writable(cache) else _temporary()
    inductor, triton = (
        Path(os.environ.get(variable) or base / name) for variable, name in _COMPILED.items()
    )
    return inductor, triton


def set_compile_caches() -> None:
    """Set these folders in the environment, so that later runs start sooner, also after a reboot.

    Call it before torch is imported, which otherwise takes a folder under /tmp.
    """
    for variable, folder in zip(_COMPILED, compiled_folders(), strict=True):
        os.environ.setdefault(variable, str(folder))
