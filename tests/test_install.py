"""Installing: compiled where there is a C++ compiler, else in pure Python, as `info` says."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastinfogan_kernels.runtime.backend import native_available, native_status

TREE = Path(__file__).parents[1]
# The editable install answers for fastinfogan before the path is searched.
WITHOUT_EDITABLE = (
    "import sys; sys.meta_path = [f for f in sys.meta_path if 'Redirect' not in type(f).__name__];"
    "import fastinfogan; assert fastinfogan.__file__.startswith(sys.argv[1]), fastinfogan.__file__;"
    "from fastinfogan.cli import main; sys.exit(main(['info']))"
)


def pip(*arguments: str, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        check=True,
        env={**os.environ, **environment},
        capture_output=True,
    )


def test_with_a_compiler_the_install_is_compiled() -> None:
    """A C++ source that does not compile would otherwise ship as pure Python, unnoticed."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    assert native_available(), native_status()


def test_the_makefile_pins_the_isolated_build_too() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", ".venv/installed"],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=True,
    )
    (install,) = (line for line in done.stdout.splitlines() if "pip install" in line)
    for pinned in ("PIP_CONSTRAINT=", "--constraint "):
        assert f"{pinned}{TREE}/.ci/constraints.txt" in install


def test_without_a_compiler_the_install_is_pure_python(tmp_path: Path) -> None:
    build = f"--config-settings=build-dir={tmp_path}/build"
    offline = ("--no-deps", "--no-build-isolation", build)
    pip("wheel", *offline, "-w", str(tmp_path), str(TREE), CC="/bin/false", CXX="/bin/false")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastinfogan_kernels/inputs/draw.py" in names
    assert not [name for name in names if name.startswith(("kernels/", "bench/", "tests/"))]
    target = tmp_path / "site"
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EDITABLE, str(target)],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "native kernels   not compiled" in done.stdout
    assert "codes drawn by   reference" in done.stdout
