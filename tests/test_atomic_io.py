"""A file is replaced whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from fastinfogan import atomic_io


def test_a_file_is_replaced_and_its_folder_made() -> None:
    file = Path("new/file.json")
    atomic_io.write_json(file, {"a": 1})
    atomic_io.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 2}
    atomic_io.write_bytes(file, b"\xff")
    assert file.read_bytes() == b"\xff"
    assert os.listdir("new") == ["file.json"]


def test_an_error_leaves_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("file")
    atomic_io.write_text(file, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupted() -> None:
        with atomic_io.replacing(file) as partial:
            partial.write_text("torn")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    monkeypatch.setattr("fastinfogan.atomic_io.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_io.write_text(file, "new")
    assert file.read_text() == "old"
    assert os.listdir() == ["file"]
