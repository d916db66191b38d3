"""The folders of compiled programs, where a second run finds them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fastinfogan import paths

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def test_the_command_line_sets_them_before_torch_is_imported(tmp_path: Path) -> None:
    program = (
        "import os; from fastinfogan.cli import main; main(['info']); "
        f"print(*(os.environ[name] for name in {VARIABLES}))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("compiled programs")]
    folders = done.stdout.splitlines()[-1].split()
    assert folders == [f"{tmp_path}/fastinfogan/inductor", f"{tmp_path}/fastinfogan/triton"]
    assert line.endswith(", ".join(folders))


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    paths.set_compile_caches()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{tmp_path}/fastinfogan/inductor"
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"


def test_the_temporary_folder_where_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    elsewhere = Path(tempfile.gettempdir()) / f"fastinfogan-{os.getuid()}"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert paths.compiled_folders() == (elsewhere / "inductor", elsewhere / "triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert paths.compiled_folders()[0] == tmp_path / "new/fastinfogan/inductor"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert paths.cache_directory() == elsewhere
