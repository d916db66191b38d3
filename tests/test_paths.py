"""Compiled programs are kept where a second run finds them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fastinfogan import paths

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def kept(**environment: str) -> tuple[str, ...]:
    """What torch and Triton are told in a process of its own, once both are imported."""
    program = (
        "import os; from fastinfogan.cli import main; main(['info']); "
        f"print(*(os.environ[name] for name in {VARIABLES}))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    told = subprocess.run(
        [sys.executable, "-c", program], env=clean | environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    (line,) = [line for line in told.stdout.splitlines() if line.startswith("compiled programs")]
    folders = tuple(told.stdout.splitlines()[-1].split())
    assert line.endswith(", ".join(folders))
    return folders


def test_they_lie_in_the_cache_or_where_the_environment_says(tmp_path: Path) -> None:
    home = str(tmp_path)
    ours = (f"{home}/fastinfogan/inductor", f"{home}/fastinfogan/triton")
    assert kept(XDG_CACHE_HOME=home) == ours
    assert kept(XDG_CACHE_HOME=home, TRITON_CACHE_DIR="/mine") == (ours[0], "/mine")


def test_without_a_cache_that_can_be_written_they_lie_in_the_temporary_folder(
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
