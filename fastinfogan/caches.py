"""Where is kept what can be made again: decoded images, rendered sets, compiled programs."""

import os
from pathlib import Path

_COMPILED = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def cache_directory() -> Path:
    """Fastinfogan's folder: $XDG_CACHE_HOME/fastinfogan, or ~/.cache/fastinfogan."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastinfogan"


def compiled_folders() -> tuple[Path, Path]:
    """Of Inductor's programs and of Triton's kernels: as the environment says, or in the cache."""
    inductor, triton = (
        Path(os.environ.get(variable) or cache_directory() / name)
        for variable, name in _COMPILED.items()
    )
    return inductor, triton


def keep_compiled() -> None:
    """Have compiled programs kept there, so that a second run starts sooner, also after a reboot.

    To be called before torch is imported: it settles on a folder under /tmp.
    """
    for variable, folder in zip(_COMPILED, compiled_folders(), strict=True):
        os.environ.setdefault(variable, str(folder))
