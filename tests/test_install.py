"""Installing: compiled where there is a C++ compiler, else in pure Python, as `info` says."""

import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import fastinfogan
from fastinfogan.cli import main
from fastinfogan_kernels.runtime.launch import native_available, native_status

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


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run make, also where the tests are themselves run by make."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--always-make", *arguments]
    return subprocess.run(
        command, cwd=TREE, env=outside, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel as a machine without a C++ compiler builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", f"--config-settings=build-dir={folder}/build")
    pip("wheel", *offline, "-w", str(folder), str(TREE), CC="/bin/false", CXX="/bin/false")
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_with_a_compiler_the_install_is_compiled() -> None:
    """A C++ source that does not compile would otherwise ship as pure Python, unnoticed."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    assert native_available(), native_status()


@pytest.mark.parametrize(
    ("stamp", "what"), [("installed", "'.[dev]'"), ("installed-core", ".")], ids=["dev", "core"]
)
def test_the_makefile_pins_the_isolated_build_too(stamp: str, what: str) -> None:
    done = make("--dry-run", f".venv/{stamp}")
    assert done.returncode == 0, done.stderr
    (install,) = (line for line in done.stdout.splitlines() if "pip install" in line)
    assert install.endswith(f" --editable {what}")
    for pinned in ("PIP_CONSTRAINT=", "--constraint "):
        assert f"{pinned}{TREE}/.ci/constraints.txt" in install


def test_make_demo_names_a_python_that_will_not_do(tmp_path: Path) -> None:
    assert make(".venv/installed-core", "PYTHON=absent").stderr.startswith(
        "no absent: install Python 3.11 or newer\n"
    )
    # As Debian's python3 is without its package python3-venv.
    bare = tmp_path / "bare"
    hide = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv[1])"
    bare.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exit 9\nexec {sys.executable} -c "{hide}" "$2"\n')
    bare.chmod(0o755)
    found = make(".venv/installed-core", f"PYTHON={bare}").stderr.splitlines()
    assert "without ensurepip; install the package python3-venv" in found[0]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastinfogan {fastinfogan.__version__}\n"


def test_public_names_are_imported_on_first_use() -> None:
    code = (
        "import sys, fastinfogan; assert not {'torch', 'numpy', 'tyro'} & {*sys.modules};"
        "assert {*fastinfogan.__all__} <= {*dir(fastinfogan)}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(fastinfogan, name) is not None for name in fastinfogan.__all__)
    with pytest.raises(AttributeError, match="module 'fastinfogan' has no attribute 'absent'"):
        getattr(fastinfogan, "absent")  # noqa: B009 - a type checker sees a plain access


@pytest.mark.slow
def test_the_wheel_holds_both_packages_and_nothing_else(pure_wheel: Path) -> None:
    assert pure_wheel.name == f"fastinfogan-{fastinfogan.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(pure_wheel) as wheel:
        entries = wheel.infolist()
    names = {entry.filename for entry in entries}
    assert {
        "fastinfogan/py.typed",
        "fastinfogan/data/digits-5000.npz",
        "fastinfogan/data/digits-5000.txt",
        "fastinfogan_kernels/py.typed",
        "fastinfogan_kernels/_native.pyi",
        "fastinfogan_kernels/conv_block/launch_table.json",
        "fastinfogan_kernels/inputs/draw.py",
    } <= names
    roots = {name.partition("/")[0] for name in names}
    assert roots == {
        "fastinfogan",
        "fastinfogan_kernels",
        f"fastinfogan-{fastinfogan.__version__}.dist-info",
    }
    assert not [e.filename for e in entries if stat.S_ISLNK(e.external_attr >> 16)]


@pytest.mark.slow
def test_the_wheels_metadata(pure_wheel: Path) -> None:
    with zipfile.ZipFile(pure_wheel) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(wheel.read(name))
    core = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert {re.split(r"[^\w-]", each)[0] for each in core} == {
        "matplotlib", "numpy", "pillow", "rich", "safetensors", "scipy", "torch", "triton", "tyro",
    }  # fmt: skip
    assert metadata.get_all("Project-URL")
    description = str(metadata.get_payload())
    targets = re.findall(r"\]\(([^)\s]+)\)", description)
    assert any(target.endswith(".png") for target in targets)
    assert [each for each in targets if not each.startswith(("https://", "#"))] == []


@pytest.mark.slow
def test_without_a_compiler_the_install_is_pure_python(pure_wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip("install", "--no-deps", "--target", str(target), str(pure_wheel))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EDITABLE, str(target)],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "native kernels   not compiled" in done.stdout
    assert "backend          plain torch" in done.stdout
