"""The cache folders, and files that are replaced whole or not at all."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fastinfogan import files
from tests.helpers.training import full

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def test_a_file_is_replaced_and_its_folder_made() -> None:
    file = Path("new/file.json")
    files.write_json(file, {"a": 1})
    files.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 2}
    files.write_bytes(file, b"\xff")
    assert file.read_bytes() == b"\xff"
    assert os.listdir("new") == ["file.json"]


def test_an_error_leaves_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("file")
    files.write_text(file, "old")

    def interrupted() -> None:
        with files.replacing(file) as partial:
            partial.write_text("torn")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    monkeypatch.setattr("fastinfogan.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(file, "new")
    assert file.read_text() == "old"
    assert os.listdir() == ["file"]


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # so that it is restored
        monkeypatch.delenv(variable)


@pytest.mark.usefixtures("unset")
def test_the_command_line_sets_the_folders_for_torch_and_triton(tmp_path: Path) -> None:
    program = (
        "import os; from fastinfogan.cli import main; main(['info']); "
        f"print(*(os.environ[name] for name in {VARIABLES}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = [f"{tmp_path}/fastinfogan/inductor", f"{tmp_path}/fastinfogan/triton"]
    lines = done.stdout.splitlines()
    assert lines[-1].split() == expected
    (line,) = [line for line in lines if line.startswith("compiled programs")]
    assert line.endswith(", ".join(expected))


@pytest.mark.usefixtures("unset")
def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    files.set_compile_caches()
    found = [os.environ[variable] for variable in VARIABLES]
    assert found == [f"{tmp_path}/fastinfogan/inductor", "/mine"]


@pytest.mark.usefixtures("unset")
def test_without_a_writable_cache_the_temporary_folder_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = Path(tempfile.gettempdir()) / f"fastinfogan-{os.getuid()}"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert files.compiled_folders() == (temporary / "inductor", temporary / "triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert files.compiled_folders()[0] == tmp_path / "new/fastinfogan/inductor"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert files.cache_directory() == temporary
