"""The two sides' sources: base as a worktree of its commit, head as the working tree lies there."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastinfogan.errors import InputError

HERE = Path(__file__).parents[2]
"""The tree that this program is run from."""
_BRANCHES = ("main", "origin/main")


class NothingToCompareError(InputError):
    """No history: no repository, no commit, or no base was named and there is none."""


@dataclass(frozen=True)
class Head:
    """The working tree.

    Attributes:
        root: its folder.
        commit: that it is based on, 12 digits.
        changed: files that differ from it, new ones included.
    """

    root: Path
    commit: str
    changed: tuple[str, ...]

    @property
    def title(self) -> str:
        """As it is told."""
        if not self.changed:
            return self.commit
        more = f" and {len(self.changed) - 3} more" if len(self.changed) > 3 else ""
        return f"{self.commit} with uncommitted changes: {', '.join(self.changed[:3])}{more}"


def git(root: Path, *arguments: str) -> str:
    """What git says.

    Raises:
        InputError: there is no git, or it refuses; its last line.
    """
    # A hook's variables point git at the repository that it runs in.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=clean,
        )
    except FileNotFoundError as error:
        raise InputError("git is not installed; it is needed to get at another commit") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"git {arguments[0]}: {said[-1]}")
    return done.stdout.rstrip("\n")


def read_head(root: Path = HERE) -> Head:
    """Look at the working tree.

    Raises:
        NothingToCompareError: it is no repository of its own, or has no commit.
        InputError: a submodule is not as its commit says.
    """
    try:
        top = git(root, "rev-parse", "--show-toplevel")
    except InputError as error:
        raise NothingToCompareError(f"{root} is not a git repository: {error}") from error
    if Path(top).resolve() != root.resolve():
        raise NothingToCompareError(f"{root} is no repository of its own, but a folder of {top}'s")
    try:
        commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")[:12]
    except InputError as error:
        raise NothingToCompareError(f"{root} has no commit yet") from error
    changed = []
    told = git(root, "status", "--porcelain=v2", "--ignore-submodules=none", "-z")
    entries = iter(told.split("\0"))
    for entry in entries:
        kind, _, rest = entry.partition(" ")
        if kind == "2":
            next(entries)  # what it was renamed from
        if kind in ("1", "2", "u") and rest.split(" ")[1].startswith("S"):
            raise InputError(
                f"the submodule {_path(kind, rest)} is not as its commit says; git submodule update"
            )
        if kind:
            changed.append(_path(kind, rest))
    return Head(root, commit, tuple(changed))


def _path(kind: str, rest: str) -> str:
    fields = {"1": 7, "2": 8, "u": 9}.get(kind, 0)  # in front of it
    return rest.split(" ", fields)[fields]


def resolve(base: str | None, head: Head) -> str:
    """The commit to compare with.

    Args:
        base: as the user names it; None for where this branch left main, or on main HEAD~1.
        head: the working tree.

    Raises:
        InputError: there is no such commit.
        NothingToCompareError: none was named, and there is no default.
    """
    if base is not None:
        try:
            return git(head.root, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
        except InputError as error:
            raise InputError(f"no commit {base!r} here; fetch it, or name another") from error
    here = git(head.root, "rev-parse", "HEAD")
    for branch in _BRANCHES:
        try:
            forked = git(head.root, "merge-base", "HEAD", branch)
        except InputError:
            continue
        if forked != here:
            return forked
    try:
        return git(head.root, "rev-parse", "--verify", "--quiet", "HEAD~1^{commit}")
    except InputError as error:
        raise NothingToCompareError(
            f"{head.commit} has no parent here: the first commit, or a clone without history; "
            "name a base"
        ) from error


@contextmanager
def worktree(root: Path, commit: str) -> Iterator[Path]:
    """A commit's files in a temporary folder, which goes with the block, however that ends.

    Raises:
        InputError: git cannot make it.
    """
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as folder:
        tree = Path(folder) / "base"
        try:
            git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
            yield tree
        finally:
            if tree.exists():
                git(root, "worktree", "remove", "--force", str(tree))
            git(root, "worktree", "prune")
