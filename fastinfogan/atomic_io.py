"""Replace a file whole or not at all, in a way that survives a crash of the machine."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


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
