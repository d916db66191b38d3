"""Installing where there is no C++ compiler: pure Python, and `info` says so."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

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


def test_without_a_compiler_the_install_is_pure_python(tmp_path: Path) -> None:
    offline = ("--no-deps", "--no-build-isolation")
    pip("wheel", *offline, "-w", str(tmp_path), str(TREE), CC="/bin/false", CXX="/bin/false")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastinfogan/kernels/draw.py" in names
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
