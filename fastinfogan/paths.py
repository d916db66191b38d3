"""Where is kept what can be made again: decoded images, rendered sets, compiled programs."""

import os
import tempfile
from pathlib import Path

_COMPILED = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def cache_directory() -> Path:
    """Fastinfogan's folder: $XDG_CACHE_HOME/fastinfogan, or ~/.cache/fastinfogan.

    A user without a home, as in some containers, has it in the system's temporary folder.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "fastinfogan"
    except RuntimeError:
        return _temporary()


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"fastinfogan-{os.getuid()}"


def _writable(folder: Path) -> bool:
    """Whether it can be written to, or made."""
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except OSError:
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def compiled_folders() -> tuple[Path, Path]:
    """Of Inductor's programs and of Triton's kernels.

    As the environment says; or in the cache, if it can be written to; or under the system's
    temporary folder, as torch by itself has them.
    """
    cache = cache_directory()
    base = cache if _writable(cache) else _temporary()
    inductor, triton = (
        Path(os.environ.get(variable) or base / name) for variable, name in _COMPILED.items()
    )
    return inductor, triton


def keep_compiled() -> None:
    """Have compiled programs kept there, so that a second run starts sooner, also after a reboot.

    To be called before torch is imported: it settles on a folder under /tmp.
    """
    for variable, folder in zip(_COMPILED, compiled_folders(), strict=True):
        os.environ.setdefault(variable, str(folder))
