"""Compare a commit's times with the working tree's.

Both trees' packages are timed by this tree's bench/, by a process each, round by round; a case that
is slower is timed once more by new processes, and is a regression if it is slower again. Counts
need no second tree: `make counts` compares them with bench/results/counts.json.

Exits with 0 if nothing regressed, 1 if something did, 2 if the comparison cannot be made.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.compare.paired import FEWEST, ROUNDS
from bench.compare.times import CaseError, Timed, WorkerError, progress, time_all
from bench.compare.trees import add_native, git, resolve, worktree
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
    add("--short", action="store_true", help="time a few cases, in about a minute")
    add("-k", dest="names", action="append", metavar="TEXT", help="time cases named like this")
    add("--rounds", type=int, default=ROUNDS, help=f"of each case; {ROUNDS} if not given")
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
        found = _times(root, commit, options)
        failures = [each.key for each in found if each.outcome in ("regression", "failed")]
        if options.json:
            document = {"times": [asdict(each) for each in found], "failures": failures}
            options.json.write_text(json.dumps(document, indent=1) + "\n")
    except (InputError, CaseError, WorkerError, OSError) as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench.compare: interrupted", file=sys.stderr)
        return 130
    print(f"{'base':>9} {'head':>9}  ratio (quartiles)  case", *found, sep="\n")
    print(f"REGRESSION in {', '.join(failures)}" if failures else "no regression")
    return 1 if failures else 0


def _times(root: Path, commit: str, options: argparse.Namespace) -> list[Timed]:
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
    return found


if __name__ == "__main__":
    sys.exit(main())
