"""Files: the cache folders, and replacing a file whole or not at all, even in a crash."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a temporary path beside `file`; what was written there becomes `file`.

    The folder is made if it is missing. An exception leaves `file` as it was and removes the
    temporary file. Several processes may replace the same file: the last one wins.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, file)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync(file.parent)


def write_bytes(file: Path, content: bytes) -> None:
    """Replace a file's bytes; see `replacing`."""
    with replacing(file) as partial:
        partial.write_bytes(content)


def write_text(file: Path, text: str) -> None:
    """Replace a file's text, in UTF-8; see `replacing`."""
    write_bytes(file, text.encode())


def write_json(file: Path, value: Any) -> None:  # noqa: ANN401 - JSON
    """Replace a file by a value in JSON, indented by one; see `replacing`."""
    write_text(file, json.dumps(value, indent=1) + "\n")
