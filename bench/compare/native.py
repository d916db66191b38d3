"""A tree's C++ part, built as an installation builds it, and kept: the next comparison finds it."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

from fastinfogan.errors import InputError
from fastinfogan.paths import cache_directory

_MODULE = "_native"
_KEPT = 20
"""Built modules, the latest, of 1.5 MB each."""


class BuildError(InputError):
    """A tree's C++ part does not compile."""


def module_for(tree: Path, head: Path) -> Path | None:
    """The compiled module of a tree's sources.

    It is the installed one if that was built of these sources, by make's rule that it is newer than
    they are; else one that was built before; else it is built now.

    Args:
        tree: a checkout.
        head: the tree that is worked in, to which an editable installation belongs.

    Returns:
        The module's file, or None if the tree has no C++ part or nobody can compile.

    Raises:
        BuildError: it does not compile.
    """
    sources = _sources(tree)
    if not sources:
        return None
    installed = _installed(head)
    ours = _sources(head)
    if installed and _digest(tree, sources) == _digest(head, ours):
        built = installed.stat().st_mtime
        if all(source.stat().st_mtime <= built for source in ours):
            return installed
    compiler = next(filter(None, map(shutil.which, _compilers())), None)
    if compiler is None:
        return None
    return _kept(tree, sources, compiler) or _build(tree, sources, compiler)


def _sources(tree: Path) -> list[Path]:
    """What decides the module; the C++ tests do not."""
    lists = tree / "CMakeLists.txt"
    found = [
        file
        for file in sorted((tree / "kernels" / "native").rglob("*"))
        if file.suffix in (".cpp", ".h") and "test" not in file.relative_to(tree).parts
    ]
    return [lists, *found] if lists.exists() and found else []


def _installed(head: Path) -> Path | None:
    """The installed module, if it is this tree's."""
    package = importlib.util.find_spec("fastinfogan")
    if package is None or not package.origin or not Path(package.origin).is_relative_to(head):
        return None
    # Not imported here: it would stay in this process.
    found = importlib.util.find_spec(f"fastinfogan.{_MODULE}")
    return Path(found.origin) if found and found.origin else None


def _compilers() -> tuple[str, ...]:
    return tuple(filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))


def _digest(tree: Path, sources: list[Path], *more: str) -> str:
    found = hashlib.sha256()
    for source in sources:
        found.update(f"{source.relative_to(tree)}\0".encode())
        found.update(hashlib.sha256(source.read_bytes()).digest())
    for each in more:
        found.update(f"{each}\0".encode())
    return found.hexdigest()


def _file(tree: Path, sources: list[Path], compiler: str) -> Path:
    """Where the module of these sources is kept: all that decides it is in its name."""
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    what = (
        compiler,
        told.stdout.partition("\n")[0],
        *(os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS")),
        *(f"{name} {_version(name)}" for name in ("nanobind", "torch")),
        sys.version,
    )
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    digest = _digest(tree, sources, *what)[:24]
    return cache_directory() / "native" / digest / f"{_MODULE}{suffix}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _kept(tree: Path, sources: list[Path], compiler: str) -> Path | None:
    file = _file(tree, sources, compiler)
    if not file.exists():
        return None
    os.utime(file.parent)
    return file


def _build(tree: Path, sources: list[Path], compiler: str) -> Path:
    file = _file(tree, sources, compiler)
    print(f"building the C++ part of {tree}, once ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-native-") as folder:
        configure = (
            *_tool("cmake"), "-S", str(tree), "-B", folder, "-DSKBUILD=ON",
            f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CXX_COMPILER={compiler}",
            "-DCMAKE_BUILD_TYPE=Release",
        )  # fmt: skip
        jobs = str(len(os.sched_getaffinity(0)))
        for command in (configure, (*_tool("cmake"), "--build", folder, "--parallel", jobs)):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = (done.stdout + done.stderr).splitlines()
                said = [line for line in lines if "rror" in line] or lines or ["cmake failed"]
                raise BuildError(f"the C++ part of {tree} does not build: {said[0].strip()}")
        (made,) = Path(folder).glob(f"{_MODULE}*{Path(file.name).suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{os.getpid()}.new")
        shutil.copyfile(made, new)
        new.replace(file)
    folders = sorted(file.parents[1].iterdir(), key=lambda each: each.stat().st_mtime)
    for old in folders[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return file


def _tool(name: str) -> tuple[str, ...]:
    """The one that came with the development packages, or the system's."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BuildError(f"{name} is not installed; pip install 'fastinfogan[dev]'")
    return (found,)
