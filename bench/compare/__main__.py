"""Compare a commit with the working tree: interleaved times, and the counts of both.

Both trees' packages are timed by this tree's bench/, by a process each, round by round; a case that
is slower is timed once more by new processes, and is a regression if it is slower again. Counts are
this tree's, and those that the commit holds in bench/results/counts.json.

Exits with 0 if nothing regressed, 1 if something did, 2 if the comparison cannot be made.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.compare.paired import FEWEST, ROUNDS
from bench.compare.times import CaseError, WorkerError, progress, time_all
from bench.compare.trees import add_native, git, resolve, worktree
from bench.counting.committed import FILE, compare_with, count_all
from fastinfogan.errors import InputError
from fastinfogan.files import set_compile_caches

ROOT = Path(__file__).parents[2]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("base", nargs="?", help="a commit; where this branch left main, or on main its parent")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--counts-only", action="store_true", help="time nothing")
    what.add_argument("--times-only", action="store_true", help="count nothing")
    add("--short", action="store_true", help="time a few cases, in about a minute")
    add("-k", dest="names", action="append", metavar="TEXT", help="time cases named like this")
    add("--rounds", type=int, default=ROUNDS, help=f"of each case; {ROUNDS} if not given")
    add("--allow", action="append", default=[], metavar="COUNT", help="may grow; a name, * and ?")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    return parser


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the command; the exit code.

    Args:
        arguments: None for the process's.
        root: the working tree.
    """
    options = _parser().parse_args(arguments)
    set_compile_caches()
    try:
        if options.rounds < FEWEST:
            raise InputError(f"--rounds {options.rounds}: a test takes {FEWEST} at least")
        commit = resolve(options.base, root)
        changed = " with uncommitted changes" if git(root, "status", "--porcelain") else ""
        print(f"base {commit[:12]}, head {git(root, 'rev-parse', 'HEAD')[:12]}{changed}")
        failures, document = [], {}
        if not options.times_only:
            grown, document["counts"] = _counts(root, commit, options.allow)
            failures += grown
        if not options.counts_only:
            slower, document["times"] = _times(root, commit, options)
            failures += slower
        document["failures"] = failures
        if options.json:
            options.json.write_text(json.dumps(document, indent=1) + "\n")
    except (InputError, CaseError, WorkerError, OSError) as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench.compare: interrupted", file=sys.stderr)
        return 130
    print(f"REGRESSION in {', '.join(failures)}" if failures else "no regression")
    return 1 if failures else 0


def _counts(root: Path, commit: str, allowed: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Print the counts that differ; names of those that grew, and the comparison for JSON."""
    file = FILE.relative_to(ROOT).as_posix()
    text = git(root, "show", f"{commit}:{file}")
    comparison, notes = compare_with(text, count_all(), f"{commit[:12]}:{file}")
    print("\n".join([*comparison.lines(), *notes]))
    grown = [n for n in comparison.grown if not any(fnmatchcase(n, each) for each in allowed)]
    return grown, asdict(comparison)


def _times(
    root: Path, commit: str, options: argparse.Namespace
) -> tuple[list[str], list[dict[str, Any]]]:
    """Print the times of both trees; names of regressions, and all times for JSON."""

    def chosen(key: str, short: bool) -> bool:
        if options.names:
            return any(name.lower() in key.lower() for name in options.names)
        return short or not options.short

    with worktree(root, commit) as tree:
        add_native(tree, commit, root)
        found = time_all(tree, root, options.rounds, chosen, slow=bool(options.names))
    progress("")
    if not found:
        raise InputError(f"no case has {' or '.join(options.names or ())} in its name")
    print(f"{'base':>9} {'head':>9}  ratio (quartiles)  case")
    for each in found:
        print(each)
    failures = [each.key for each in found if each.outcome in ("regression", "failed")]
    return failures, [asdict(each) for each in found]


if __name__ == "__main__":
    sys.exit(main())
