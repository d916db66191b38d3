"""Compare what this tree counts with bench/results/counts.json: any count that grew fails.

python -m bench.counting.committed            # make test runs it
python -m bench.counting.committed --write    # record counts that grew on purpose
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench.timing.rows import RESULTS
from fastinfogan.errors import InputError
from fastinfogan.files import set_compile_caches, write_text

FILE: Final = RESULTS / "counts.json"
COMMAND: Final = "python -m bench.counting.committed --write"
TARGET: Final = "sm_90"
PRECISIONS: Final = ("bf16", "fp16", "fp32", "tf32")
_FIELDS: Final = {
    "launches": "launches", "bytes moved": "bytes", "FLOPs": "flops", "host waits": "host_syncs",
    "allocations": "allocations",
}  # fmt: skip
_COMPILERS: Final = ("torch", "triton")  # which decide registers
_SHOWN: Final = 40  # lines of a table

Counts = Mapping[str, int]


def count_all() -> dict[str, int]:
    """Count launches, bytes, FLOPs, saved bytes and registers of all experiments, by name."""
    from bench.counting.saved import chains

    found: dict[str, int] = {}
    for counts in (_iterations(), chains(), _kernels()):
        for name, number in counts:
            found[name] = max(number, found.get(name, 0))
    return found


def _iterations() -> Iterator[tuple[str, int]]:
    from bench.counting.iteration import count
    from fastinfogan import experiments

    for name in experiments.EXPERIMENTS:
        for precision in PRECISIONS:
            found = count(experiments.get(name), precision)
            for what, field in _FIELDS.items():
                yield f"{what} of {name} in {precision}", getattr(found, field)


def _kernels() -> Iterator[tuple[str, int]]:
    """Count registers, stack and fp64 of each kernel, and registers of each of its variants."""
    from bench.compiled import compile_launches, record_all
    from fastinfogan import experiments
    from fastinfogan_kernels.runtime.machine import MACHINES, assuming

    launches = []
    with assuming(MACHINES[TARGET]):
        for name in experiments.EXPERIMENTS:
            launches += record_all(replace(experiments.get(name), batch_size=128))
    for each in compile_launches(launches, TARGET):
        kernel = each.kernel.removesuffix("_kernel")
        yield f"registers of {kernel} for {TARGET}", each.registers
        yield f"stack bytes of {kernel} for {TARGET}", each.stack
        yield f"double-precision instructions of {kernel} for {TARGET}", each.f64
        yield f"registers of {kernel} for {TARGET}: {each.variant}", each.registers


@dataclass(frozen=True)
class Comparison:
    """Two sets of counts.

    Attributes:
        equal: how many counts are the same.
        grown: (before, now) by name.
        fallen: the same.
        only_before: names that only the first set has.
        only_now: names that only the second set has.
        note: on counts that are not compared.
    """

    equal: int
    grown: Mapping[str, tuple[int, int]]
    fallen: Mapping[str, tuple[int, int]]
    only_before: Sequence[str]
    only_now: Sequence[str]
    note: str = ""

    @classmethod
    def of(cls, before: Counts, now: Counts, note: str = "") -> "Comparison":
        both = {name: (before[name], now[name]) for name in now if name in before}
        return cls(
            sum(old == new for old, new in both.values()),
            {name: pair for name, pair in both.items() if pair[1] > pair[0]},
            {name: pair for name, pair in both.items() if pair[1] < pair[0]},
            sorted(before.keys() - now.keys()),
            sorted(now.keys() - before.keys()),
            note,
        )

    def __str__(self) -> str:
        rows = [
            f"{before:14,} {now:14,}  {name}{verdict}"
            for counts, verdict in ((self.grown, "  GREW"), (self.fallen, ""))
            for name, (before, now) in counts.items()
        ]
        lines = [f"{'before':>14} {'now':>14}  count", *rows[:_SHOWN]] if rows else []
        if len(rows) > _SHOWN:
            lines.append(f"... and {len(rows) - _SHOWN} more that differ")
        for when, names in (("before", self.only_before), ("now", self.only_now)):
            if names:
                lines.append(f"{len(names)} counts only {when}, {names[0]} for one")
        grown, fallen = len(self.grown), len(self.fallen)
        lines.append(f"{self.equal} counts are equal, {grown} grew, {fallen} fell")
        lines += [self.note] if self.note else []
        if rows or self.only_before or self.only_now:
            lines.append(f"if that is meant: {COMMAND}, and commit the file")
        return "\n".join(lines)


def compare_with(text: str, now: Counts) -> Comparison:
    """Compare the text of a counts.json with this tree's counts.

    Registers are left out if it was written with other compilers, which allocate them differently.

    Raises:
        InputError: the text holds no counts.
    """
    try:
        document: dict[str, Any] = json.loads(text)
        before = {str(name): int(number) for name, number in document["counts"].items()}
        compilers = dict(document["versions"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"no counts: {error}; {COMMAND}") from error
    if compilers == _versions():
        return Comparison.of(before, now)
    before, now = (
        {name: n for name, n in counts.items() if not name.startswith("registers")}
        for counts in (before, now)
    )
    others = ", ".join(f"{name} {compilers.get(name)}" for name in _COMPILERS)
    note = f"registers are not compared: they were counted with {others}"
    return Comparison.of(before, now, note)


def _versions() -> dict[str, str]:
    from fastinfogan.engine.config import versions

    found = versions()
    return {name: str(found[name]).partition("+")[0] for name in _COMPILERS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code, 1 if a count grew."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.counting.committed", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help="write the committed counts anew")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    set_compile_caches()
    if options.write:
        counts = dict(sorted(count_all().items()))
        document = {"versions": _versions(), "counts": counts}
        write_text(options.file, json.dumps(document, indent=0) + "\n")
        print(f"{options.file}: {len(counts)} counts")
        return 0
    try:
        comparison = compare_with(options.file.read_text(), count_all())
    except (OSError, InputError) as error:
        print(f"counts: {options.file}: {error}", file=sys.stderr)
        return 2
    print(comparison)
    return 1 if comparison.grown else 0


if __name__ == "__main__":
    sys.exit(main())
