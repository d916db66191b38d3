"""What a comparison tells: a table of counts, a table of times, one closing line; and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.compare.counts import Compared
from bench.compare.timing import Timed
from fastinfogan.atomic_io import sync
from fastinfogan.errors import InputError


@dataclass(frozen=True)
class Report:
    """Of one comparison.

    Attributes:
        base: the commit, 12 digits.
        head: the working tree's title.
        counts: compared; None if not asked for.
        times: of the cases; None if not asked for.
        device: on which they were taken.
    """

    base: str
    head: str
    counts: Compared | None = None
    times: Sequence[Timed] | None = None
    device: str = ""

    @property
    def failures(self) -> list[str]:
        """What shuts the gate, each in a few words."""
        found = []
        if self.counts:
            found += [each.name.partition(":")[0] for each in self.counts.failures]
            found += [where for where in self.counts.failed if where.startswith("head")]
        found += [each.key for each in self.times or () if each.fails]
        return list(dict.fromkeys(found))

    def lines(self) -> list[str]:
        """All of it."""
        lines = [f"base {self.base}, head {self.head}"]
        if self.counts:
            lines += ["", *self.counts.lines()]
        if self.times is not None:
            lines += ["", *_table(self.times, self.device)]
        return [*lines, "", self.closing]

    @property
    def closing(self) -> str:
        """The last line."""
        parts = []
        if self.counts:
            grown = [each for each in self.counts.changes if each.grew]
            parts.append(f"{len(grown)} counts grew" if grown else "no count grew")
        if self.times is not None:
            timed = [each for each in self.times if each.first]
            faster = sum(each.outcome == "faster" for each in timed)
            noisy = sum((each.first.beyond or 0) > _SEEN for each in timed if each.first)
            others = len(self.times) - len(timed)
            told = {"timed": len(timed), "faster": faster, "not timed": others}
            told[f"too noisy for a change of {_SEEN:.0%} to be seen"] = noisy
            words = [f"{n} {what}" for what, n in told.items() if n or what in ("timed", "faster")]
            parts.append(", ".join(words).replace(" timed", " cases timed", 1))
        if not self.failures:
            return f"fine: {'; '.join(parts)}"
        more = f" and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
        return f"REGRESSION in {', '.join(self.failures[:3])}{more}; {'; '.join(parts)}"

    def write(self, file: Path, code: int) -> None:
        """Write it as JSON.

        Raises:
            InputError: it cannot be written.
        """
        told: dict[str, Any] = asdict(self)
        told |= {"failures": self.failures, "exit_code": code}
        new = file.with_name(f"{file.name}.new")
        try:
            new.write_text(json.dumps(told, indent=1) + "\n")
            sync(new)
            new.replace(file)
        except OSError as error:
            raise InputError(f"--json {file}: {error.strerror}") from error


_SHOUTED = ("regression", "failed")
_SEEN = 0.10


def _table(times: Sequence[Timed], device: str) -> list[str]:
    lines = [f"{'base':>10} {'head':>10}  ratio  quartiles     beyond  case, on {device}"]
    left_out: dict[str, list[str]] = {}
    for each in times:
        if each.outcome == "left out":
            left_out.setdefault(each.note, []).append(each.key)
            continue
        verdict = each.outcome.upper() if each.outcome in _SHOUTED else each.outcome
        tail = each.key if verdict == "same" else f"{each.key}: {verdict}"
        if each.second and each.second.ratio:
            tail += f", then {each.second.ratio.median:.3f} from {each.second.ratio.low:.3f}"
        if each.note:
            tail += f" ({each.note})"
        lines.append(f"{_numbers(each)}  {tail}")
    lines += [
        f"left out ({why}): {'; '.join(keys[:3])}{f' and {len(keys) - 3} more' * (len(keys) > 3)}"
        for why, keys in left_out.items()
    ]
    return lines


def _numbers(timed: Timed) -> str:
    if timed.base is None or timed.head is None or timed.first is None:
        return f"{'-':>10} {'-':>10}      -  {'-':11}        -"
    ratio, beyond = timed.first.ratio, timed.first.beyond
    if ratio is None or beyond is None:
        return f"{_seconds(timed.base)} {_seconds(timed.head)}      -  {'-':11}        -"
    quartiles = f"{ratio.low:.3f}-{ratio.high:.3f}"
    return (
        f"{_seconds(timed.base)} {_seconds(timed.head)}  {ratio.median:.3f}  {quartiles:11}  "
        f"{beyond:6.1%}"
    )


def _seconds(seconds: float) -> str:
    for unit, worth in (("s ", 1.0), ("ms", 1e-3)):
        if seconds >= worth:
            return f"{seconds / worth:7.3f} {unit}"
    return f"{seconds / 1e-6:7.2f} us"
