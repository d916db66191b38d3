"""Hard counts compared: whatever grew fails, by one as by a thousand.

    python -m bench.compare.counts [--write]

without `--write` compares what this tree counts with bench/results/counts.json, which CI does on
any clone, one without history too; with it, that file is written anew. A count that grew on purpose
is recorded there by that, or for a comparison of commits in bench/compare/allowed.toml.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.timing.rows import RESULTS
from fastinfogan.atomic_io import sync
from fastinfogan.engine.environment import versions
from fastinfogan.errors import InputError
from fastinfogan.paths import keep_compiled

ALLOWED = Path(__file__).with_name("allowed.toml")
COMMITTED = RESULTS / "counts.json"
_COMPILERS = ("torch", "triton")  # whose version decides registers, and what ATen launches
_TOLD = 40
"""Lines of a table at the most."""


@dataclass(frozen=True)
class Permission:
    """To grow.

    Attributes:
        count: the name of a count, or a pattern with * and ?.
        reason: why.
    """

    count: str
    reason: str

    def covers(self, name: str) -> bool:
        """Whether it speaks of a count; the target and what stands behind it may be left out."""
        return fnmatchcase(name, self.count) or fnmatchcase(name, f"{self.count} for *")


@dataclass(frozen=True)
class Change:
    """A count that differs; None where a side has none."""

    name: str
    base: int | None
    head: int | None
    allowed: Permission | None = None

    @property
    def grew(self) -> bool:
        """Whether both have it and head's is larger."""
        return self.base is not None and self.head is not None and self.head > self.base

    @property
    def fails(self) -> bool:
        """Whether it grew, and nobody allowed that."""
        return self.grew and self.allowed is None


@dataclass(frozen=True)
class Compared:
    """Two sides' counts.

    Attributes:
        same: counts that are equal.
        changes: those that are not, failures first.
        unused: permissions that nothing needed.
        failed: why a group of counts could not be compared, by side and group.
    """

    same: int
    changes: tuple[Change, ...]
    unused: tuple[Permission, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> list[Change]:
        """What grew and was not allowed."""
        return [each for each in self.changes if each.fails]

    def lines(self, base: str = "base", head: str = "head") -> list[str]:
        """As a table."""
        both = [each for each in self.changes if None not in (each.base, each.head)]
        lines = []
        if both:
            lines = [f"{base:>14} {head:>14}  count"]
            lines += [_line(each) for each in both[:_TOLD]]
            if len(both) > _TOLD:
                lines.append(f"... and {len(both) - _TOLD} more that differ")
        for side, other in (("head", "base"), ("base", "head")):
            alone = [each.name for each in self.changes if getattr(each, other) is None]
            if alone:
                told = head if side == "head" else base
                lines.append(f"{len(alone)} counts only in {told}, {alone[0]} for one")
        lines += [f"not compared: {where}: {why}" for where, why in self.failed.items()]
        lines += [f"permission not needed: {each.count!r} ({each.reason})" for each in self.unused]
        lines.append(
            f"{self.same} counts are equal, {len(both)} differ, {len(self.failures)} grew "
            "without permission"
        )
        return lines


def _line(change: Change) -> str:
    assert change.base is not None
    assert change.head is not None
    if change.fails:
        verdict = "  GREW"
    elif change.allowed:
        verdict = f"  allowed: {change.allowed.reason}"
    else:
        verdict = ""
    return f"{change.base:14,} {change.head:14,}  {change.name}{verdict}"


def compare(
    base: Mapping[str, int],
    head: Mapping[str, int],
    allowed: Sequence[Permission] = (),
    failed: Mapping[str, str] | None = None,
) -> Compared:
    """Compare two sides' counts, exactly.

    Args:
        base: counts by name.
        head: the same.
        allowed: what may grow.
        failed: what could not be counted.
    """
    changes, used = [], set()
    for name in sorted({*base, *head}):
        change = Change(name, base.get(name), head.get(name))
        if change.base == change.head:
            continue
        if change.grew:
            covering = [each for each in allowed if each.covers(name)]
            used |= set(covering)
            change = Change(name, change.base, change.head, covering[0] if covering else None)
        changes.append(change)
    changes.sort(key=lambda each: (not each.fails, not each.grew))
    same = sum(1 for name, number in base.items() if head.get(name) == number)
    unused = tuple(each for each in allowed if each not in used)
    return Compared(same, tuple(changes), unused, failed or {})


def read_allowed(file: Path = ALLOWED, more: Iterable[str] = ()) -> list[Permission]:
    """The recorded permissions, and those of the command line.

    Raises:
        InputError: the file is not a list of [[allowed]] with count and reason.
    """
    found = []
    if file.exists():
        try:
            entries = tomllib.loads(file.read_text()).get("allowed", [])
            found = [Permission(**entry) for entry in entries]
            if not all(isinstance(each.reason, str) and each.reason.strip() for each in found):
                raise ValueError("a permission without a reason")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file}: not permissions, [[allowed]] with count and reason each: {error}"
            ) from error
    return found + [Permission(pattern, "--allow") for pattern in more]


def write_committed(counts: Mapping[str, int], file: Path = COMMITTED) -> None:
    """Write the committed counts."""
    told = {"versions": _versions(), "counts": dict(sorted(counts.items()))}
    new = file.with_suffix(".new")
    file.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(json.dumps(told, indent=0) + "\n")
    sync(new)
    new.replace(file)


def read_committed(file: Path = COMMITTED) -> tuple[dict[str, str], dict[str, int]]:
    """Versions and counts of the committed file.

    Raises:
        InputError: not such a file.
    """
    try:
        told: dict[str, Any] = json.loads(file.read_text())
        counts = {str(name): int(number) for name, number in told["counts"].items()}
        return dict(told["versions"]), counts
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{file}: not committed counts: {error}; python -m bench.compare.counts --write"
        ) from error


def _versions() -> dict[str, str]:
    found = versions()
    return {name: str(found[name]).partition("+")[0] for name in _COMPILERS}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    from bench.compare.counting import count_all

    summary = str(__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bench.compare.counts", description=summary)
    parser.add_argument("--write", action="store_true", help="write the committed counts anew")
    parser.add_argument("--file", type=Path, default=COMMITTED)
    asked = parser.parse_args(arguments)
    try:
        before = None if asked.write else read_committed(asked.file)
        keep_compiled()
        found = count_all()
        if found["failed"]:
            group, why = next(iter(found["failed"].items()))
            print(f"counts: {group} cannot be counted: {why}", file=sys.stderr)
            return 1
        if before is None:
            write_committed(found["counts"], asked.file)
            print(f"{asked.file}: {len(found['counts'])} counts")
            return 0
    except InputError as error:
        print(f"counts: {error}", file=sys.stderr)
        return 2
    made_with, counts = before
    # Another compiler gives other registers, and that is no change of ours.
    moved = [f"{n} {made_with.get(n)}" for n in _COMPILERS if made_with.get(n) != _versions()[n]]
    if moved:
        counts = {name: n for name, n in counts.items() if not name.startswith("registers")}
    compared = compare(counts, found["counts"])
    print("\n".join(compared.lines("committed", "this tree")))
    if moved:
        print(f"registers not compared: {asked.file.name} was written with {', '.join(moved)}")
    if compared.changes:
        print("if that is meant: python -m bench.compare.counts --write, and commit the file")
    return 1 if compared.failures else 0


if __name__ == "__main__":
    sys.exit(main())
