"""Folders of the cache and of compiled programs."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fastinfogan import paths

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # so that it is restored
        monkeypatch.delenv(variable)


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


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    paths.set_compile_caches()
    found = [os.environ[variable] for variable in VARIABLES]
    assert found == [f"{tmp_path}/fastinfogan/inductor", "/mine"]


def test_without_a_writable_cache_the_temporary_folder_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = Path(tempfile.gettempdir()) / f"fastinfogan-{os.getuid()}"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert paths.compiled_folders() == (temporary / "inductor", temporary / "triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert paths.compiled_folders()[0] == tmp_path / "new/fastinfogan/inductor"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert paths.cache_directory() == temporary
