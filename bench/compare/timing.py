"""Both sides' cases timed by turns, and judged."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.compare.decide import BLOCK, FEWEST, Final, Judged, conclude, judge
from bench.compare.side import LostError, Side

MODULES = ("bench.cases.iteration", "bench.cases.blocks", "bench.cases.ops")
"""The most telling ones first."""
ROUNDS = 32
_WORTH = {False: 2.0, True: 0.5}
"""Seconds of timing for each that a case says it is worth, if that is not too few rounds; and of
the short set."""
_SHORT = 45.0
"""Seconds after which the short set begins no other case: it is for CI, whatever the machine."""
_SLOW = 1.0
"""Seconds of a run from which a case is timed only if asked for by name."""
_LIMITS = {"hello": 120.0, "plan": 120.0, "prepare": 180.0}


@dataclass(frozen=True)
class Timed:
    """What became of a case.

    Attributes:
        key: group and name.
        outcome: "failed" if head has it no longer; "not comparable" if base has it not, "left out"
            if it is too slow to be timed unasked; else the verdict.
        base: seconds, the median; None if not timed.
        head: the same.
        first: what the first set of rounds says.
        second: the second one, if the first one was suspicious.
        note: why, or what was odd.
    """

    key: str
    outcome: Final | str
    base: float | None = None
    head: float | None = None
    first: Judged | None = None
    second: Judged | None = None
    note: str = ""

    @property
    def fails(self) -> bool:
        """Whether the gate is shut."""
        return self.outcome in ("failed", "regression")


class HeadError(RuntimeError):
    """Head cannot do a case."""


class BaseError(RuntimeError):
    """Base cannot do a case."""


@dataclass
class Pair:
    """Both sides' processes, with their cases planned. A context: they end with it.

    Attributes:
        base: the one side.
        head: the other side.
        modules: of the cases.
    """

    base: Side
    head: Side
    modules: Sequence[str] = MODULES
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __enter__(self) -> "Pair":
        try:
            for side in self.sides:
                side.start()
            for side in self.sides:
                self._set_up(side)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for side in self.sides:
            side.stop()

    @property
    def sides(self) -> tuple[Side, Side]:
        """Base and head."""
        return self.base, self.head

    def _set_up(self, side: Side) -> None:
        side.ask("hello", _LIMITS["hello"])
        self.plans[side.name] = side.ask("plan", _LIMITS["plan"], modules=self.modules)

    def ask(self, side: Side, do: str, limit: float, **arguments: Any) -> Any:  # noqa: ANN401
        """Have a side do something for a case.

        Raises:
            HeadError: head did not; its process is a new one.
            BaseError: base did not; the same.
        """
        failed = HeadError if side is self.head else BaseError
        try:
            answer = side.ask(do, limit, **arguments)
        except LostError as error:
            self._set_up(side)
            raise failed(str(error)) from error
        if "failed" in answer:
            raise failed(f"{side.name}: {answer['failed']}")
        return answer


@contextmanager
def _prepared(pair: Pair, key: str, *, head_first: bool) -> Iterator[dict[str, Any]]:
    sides = pair.sides[::-1] if head_first else pair.sides
    try:
        yield {side.name: pair.ask(side, "prepare", _LIMITS["prepare"], case=key) for side in sides}
    finally:
        for side in sides:
            pair.ask(side, "release", 60.0)


def time_case(
    pair: Pair,
    key: str,
    rounds: int | None,
    worth: float,
    *,
    asked: bool = True,
    head_first: bool = False,
) -> tuple[Judged, float, float, str] | None:
    """Time a case's rounds.

    Args:
        pair: the processes.
        key: of the case.
        rounds: exactly so many; None for as many as are done in the seconds it is worth.
        worth: seconds.
        asked: by name.
        head_first: in the first round, and to be prepared.

    Returns:
        The verdict of these rounds, both medians, and what was odd; None if it is left out.

    Raises:
        HeadError: head cannot.
        BaseError: base cannot.
    """
    with _prepared(pair, key, head_first=head_first) as made:
        if made["base"]["seconds"] > _SLOW and not asked:
            return None
        note = ""
        if made["base"]["cache"] != made["head"]["cache"]:
            note = "base timed with a {} cache, head with a {}".format(
                made["base"]["cache"], made["head"]["cache"]
            )
        limit = 30.0 + 50 * max(each["seconds"] for each in made.values())
        seconds: dict[str, list[float]] = {"base": [], "head": []}
        begun = time.perf_counter()
        for done in range(rounds or ROUNDS):
            spent = time.perf_counter() - begun
            enough = done >= FEWEST * BLOCK and done % BLOCK == 0 and spent > worth
            if rounds is None and enough:
                break
            turned = (done % 2 == 1) != head_first
            for side in pair.sides[::-1] if turned else pair.sides:
                seconds[side.name].append(pair.ask(side, "time", limit)["seconds"])
    judged = judge(seconds["base"], seconds["head"])
    note = "; ".join(filter(None, (note, judged.note)))
    return judged, median(seconds["base"]), median(seconds["head"]), note


def time_all(
    make_pair: Callable[[], Pair],
    rounds: int | None,
    *,
    short: bool,
    chosen: Callable[[str], bool] | None,
    progress: Callable[[str], None],
) -> tuple[list[Timed], str]:
    """Time all cases, and those that look slower once more with new processes.

    Args:
        make_pair: makes both processes.
        rounds: see `time_case`.
        short: only those of the short set.
        chosen: by name; None for all.
        progress: is told each case.

    Returns:
        What became of each, and on what device.

    Raises:
        LostError: a side cannot be set up at all.
    """
    found: dict[str, Timed] = {}
    with make_pair() as pair:
        plans, device = pair.plans, str(pair.plans["head"]["device"])
        for module, why in plans["head"]["failed"].items():
            found[module] = Timed(module, "failed", note=f"head: {why}")
        for module, why in plans["base"]["failed"].items():
            found.setdefault(module, Timed(module, "not comparable", note=f"base: {why}"))
        has = {case["key"] for case in plans["base"]["cases"]}
        unable = bool(plans["base"]["failed"])
        cases = [
            case
            for case in plans["head"]["cases"]
            if (chosen(case["key"]) if chosen else case["short"] or not short)
        ]
        worth = {case["key"]: case["budget"] * _WORTH[short] for case in cases}
        begun = time.perf_counter()
        for key in worth:
            if key not in has:
                if not unable:
                    found[key] = Timed(key, "not comparable", note="base has no such case")
                continue
            if short and time.perf_counter() - begun > _SHORT:
                found[key] = Timed(
                    key, "left out", note=f"the {_SHORT:g} s of the short set are over"
                )
                continue
            progress(key)
            found[key] = _timed(pair, key, rounds, worth[key], asked=chosen is not None)
    suspects = [
        each.key for each in found.values() if each.first and each.first.verdict == "slower"
    ]
    if suspects:
        with make_pair() as pair:
            for key in suspects:
                progress(f"{key}, once more")
                found[key] = _confirmed(pair, found[key], rounds, worth[key])
    return list(found.values()), device


def _timed(pair: Pair, key: str, rounds: int | None, worth: float, *, asked: bool) -> Timed:
    try:
        result = time_case(pair, key, rounds, worth, asked=asked)
    except HeadError as error:
        return Timed(key, "failed", note=str(error))
    except BaseError as error:
        return Timed(key, "not comparable", note=str(error))
    if result is None:
        return Timed(key, "left out", note=f"a run takes more than {_SLOW:g} s; -k times it")
    judged, base, head, note = result
    return Timed(key, conclude(judged, None), base, head, judged, note=note)


def _confirmed(pair: Pair, before: Timed, rounds: int | None, worth: float) -> Timed:
    assert before.first is not None
    second, note = None, before.note
    try:
        result = time_case(pair, before.key, rounds, worth, head_first=True)
        assert result is not None
        second, note = result[0], result[3] or note
    except HeadError as error:
        return Timed(before.key, "failed", note=str(error))
    except BaseError as error:
        note = str(error)
    outcome = conclude(before.first, second)
    return Timed(before.key, outcome, before.base, before.head, before.first, second, note)
