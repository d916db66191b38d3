"""One commit against the working tree, on this machine: times by turns, and hard counts.

Exits with 0 if nothing regressed, 1 if something did, 2 if it was asked for something that cannot
be. Base is put into a worktree of its own, and its C++ part built; head is the tree as it lies.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench.compare.counting import GROUPS
from bench.compare.counts import Compared, Permission, compare, read_allowed
from bench.compare.decide import BLOCK, FEWEST
from bench.compare.native import BuildError, module_for
from bench.compare.report import Report
from bench.compare.side import LostError, Side
from bench.compare.timing import ROUNDS, Pair, time_all
from bench.compare.tree import HERE, NothingToCompareError, read_head, resolve, worktree
from fastinfogan.errors import InputError
from fastinfogan.paths import keep_compiled

_COUNTING = 1200.0
"""Seconds that a side may count: some hundred kernels are compiled the first time."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    add = parser.add_argument
    add("base", nargs="?", help="a commit; where this branch left main, or on main its parent")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--counts-only", action="store_true", help="time nothing")
    what.add_argument("--times-only", action="store_true", help="count nothing")
    add("--short", action="store_true", help="time a few cases, in about a minute")
    add(
        "-k", dest="cases", action="append", metavar="TEXT", help="time cases with this in the name"
    )
    add("--rounds", type=int, help=f"of each case; as many as it is worth, at most {ROUNDS}")
    add("--allow", action="append", default=[], metavar="COUNT", help="which may grow; * and ?")
    add(
        "--warn-only", action="store_true", help="exit with 0 whatever regressed, or without a base"
    )
    add("--json", type=Path, metavar="FILE", help="write everything there")
    return parser


def main(arguments: Sequence[str] | None = None, root: Path = HERE) -> int:
    """The command; the exit code.

    Args:
        arguments: None for the process's.
        root: the working tree.
    """
    asked = _parser().parse_args(arguments)
    keep_compiled()
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        report = _compare(asked, root)
        code = 1 if report.failures and not asked.warn_only else 0
        print("\n".join(report.lines()))
        if asked.json:
            report.write(asked.json, code)
    except (NothingToCompareError, BuildError, LostError) as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 0 if asked.warn_only else 2
    except InputError as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench.compare: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if report.failures and asked.warn_only:
        print("warning only: the exit code is 0")
    return code


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # what was set up is taken down on the way


def _compare(asked: argparse.Namespace, root: Path) -> Report:
    if asked.rounds is not None and asked.rounds < FEWEST * BLOCK:
        raise InputError(f"--rounds {asked.rounds}: a verdict takes {FEWEST * BLOCK} at least")
    allowed = read_allowed(more=asked.allow)
    head = read_head(root)
    commit = resolve(asked.base, head)
    with ExitStack() as stack:
        tree = stack.enter_context(worktree(root, commit))

        base_native, head_native = module_for(tree, root), module_for(root, root)

        def make_pair() -> Pair:
            return Pair(
                Side("base", tree, base_native, root), Side("head", root, head_native, root)
            )

        counts = times = None
        device = ""
        if not asked.times_only:
            _progress("counting")
            counts = _counted(make_pair, allowed)
        if not asked.counts_only:
            rounds = asked.rounds and -(-asked.rounds // BLOCK) * BLOCK
            chosen = _chooser(asked.cases)
            load = os.getloadavg()[0]
            times, device = time_all(
                make_pair, rounds, short=asked.short, chosen=chosen, progress=_progress
            )
            device += f", load {load:.1f} before"
            if not times:
                raise InputError(f"no case has {' or '.join(asked.cases or ())} in its name")
    _progress("")
    return Report(commit[:12], head.title, counts, times, device)


def _counted(make_pair: Callable[[], Pair], allowed: Sequence[Permission]) -> Compared:
    """Both sides side by side: exact numbers do not mind."""
    pair = make_pair()
    numbers: dict[str, dict[str, int]] = {}
    failed: dict[str, str] = {}
    try:
        for side in pair.sides:
            side.start()
        for do, limit, told in (("hello", 120.0, {}), ("count", _COUNTING, {"only": GROUPS})):
            for side in pair.sides:
                side.send(do, **told)
            answers = [_answer(side, do, limit) for side in pair.sides]
            for side, answer in zip(pair.sides, answers, strict=True):
                numbers[side.name] = answer.get("counts", {})
                why = answer.get("failed", {})
                failed |= {f"{side.name}, {group}": each for group, each in why.items()}
            if failed:
                break
    finally:
        for side in pair.sides:
            side.stop()
    return compare(numbers["base"], numbers["head"], allowed, failed)


def _answer(side: Side, do: str, limit: float) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = side.receive(do, limit)
    except LostError as error:
        return {"failed": {"all": str(error)}}
    return answer


def _chooser(texts: Sequence[str] | None) -> Callable[[str], bool] | None:
    if texts is None:
        return None
    lower = [text.lower() for text in texts]
    return lambda key: any(text in key.lower() for text in lower)


def _progress(what: str) -> None:
    """One line that is written over, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what[:100]}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
