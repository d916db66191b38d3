"""The base's tree: a commit checked out beside the working tree, with its C++ part."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastinfogan.errors import InputError


def git(root: Path, *arguments: str) -> str:
    """Run git and return its output.

    Raises:
        InputError: there is no git, or it refuses; its last line.
    """
    # A hook's variables point git at the repository that it runs in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise InputError("git is not installed; it is needed to get at another commit") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"git {arguments[0]}: {lines[-1]}")
    return done.stdout.rstrip("\n")


def resolve(base: str | None, root: Path) -> str:
    """Return the commit to compare with: as named, where this branch left main, or the parent.

    Raises:
        InputError: there is none.
    """
    if base is not None:
        return git(root, "rev-parse", "--verify", f"{base}^{{commit}}")
    head = git(root, "rev-parse", "HEAD")
    for branch in ("main", "origin/main"):
        try:
            forked = git(root, "merge-base", "HEAD", branch)
        except InputError:
            continue
        if forked != head:
            return forked
    return git(root, "rev-parse", "--verify", "HEAD~1^{commit}")


@contextmanager
def worktree(root: Path, commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary folder, which is removed with the context."""
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as folder:
        tree = Path(folder) / "base"
        try:
            git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
            yield tree
        finally:
            if tree.exists():
                git(root, "worktree", "remove", "--force", str(tree))
            git(root, "worktree", "prune")


def add_native(tree: Path, commit: str, root: Path) -> None:
    """Give base a compiled module if head has one: the same if its sources are, else built.

    Raises:
        InputError: it does not build.
    """
    try:
        from fastinfogan_kernels import _native
    except ImportError:
        return
    module = Path(str(_native.__file__))
    target = tree / "kernels" / "fastinfogan_kernels" / module.name
    sources = ("kernels/native", "CMakeLists.txt")
    if not git(root, "diff", "--name-only", commit, "--", *sources):
        shutil.copyfile(module, target)
        return
    print("building base's C++ part ...", file=sys.stderr)
    beside = Path(sys.executable).with_name("cmake")
    cmake = str(beside) if beside.exists() else "cmake"
    with tempfile.TemporaryDirectory(prefix="bench-native-") as folder:
        configure = (
            cmake, "-S", str(tree), "-B", folder, "-DSKBUILD=ON",
            f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release",
        )  # fmt: skip
        for command in (configure, (cmake, "--build", folder, "--parallel")):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = (done.stdout + done.stderr).strip().splitlines() or ["cmake failed"]
                raise InputError(f"base's C++ part does not build: {lines[-1]}")
        (built,) = Path(folder).glob(f"_native*{module.suffix}")
        shutil.copyfile(built, target)
