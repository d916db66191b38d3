"""What a stage's process is given, and how it tells what it found."""

import argparse
import gc
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.gpu_report import lines
from bench.gpu_report.lines import Line, Writer
from bench.gpu_report.supervise import LOST_DEVICE
from bench.timing.roofline import Roofline
from bench.timing.rows import Row, write

ROWS = "rows"
_ITEM = 60.0
"""Seconds that an item may take, if the stage says nothing else."""
_SPARE = 1.0
"""Seconds before its time is up at which a stage begins nothing more."""


class FailedError(AssertionError):
    """An item's own check says no.

    Args:
        why: in a line.
        numbers: found nevertheless.
    """

    def __init__(self, why: str, numbers: Mapping[str, Any]) -> None:
        super().__init__(why)
        self.numbers = numbers


class Context:
    """A stage's.

    Args:
        name: of the stage.
        work: folder of what stages leave for each other.
        out: folder of the report.
        seconds: that the stage may take, from now.
        dry: on a CPU, as small as can be.

    Attributes:
        device: to be measured.
        dry: as given.
        roofline: of the device; measured when first asked for.
        known: names of the items that need not be run any more.
        failed: names of those that this process found to be wrong.
        right: names of those that came to a good end, in this process or an earlier one.
    """

    def __init__(self, name: str, work: Path, out: Path, seconds: float, *, dry: bool) -> None:
        self.name, self.work, self.out, self.dry = name, work, out, dry
        self.device = torch.device("cpu") if dry else torch.device("cuda", 0)
        self.roofline = Roofline(self.device)
        self._deadline = time.monotonic() + seconds - _SPARE
        self._file = work / f"{name}.jsonl"
        found = lines.read(self._file)
        self.known = found.known
        self.right = {line.name for line in found.lines if line.state == "ok"}
        self.failed: set[str] = set()
        self._writer = Writer(self._file)

    @property
    def left(self) -> float:
        """Seconds until nothing more may be begun."""
        return self._deadline - time.monotonic()

    def run(
        self, name: str, item: Callable[[], Mapping[str, Any]], *, limit: float = _ITEM
    ) -> Mapping[str, Any] | None:
        """Run an item, unless an earlier process of this stage has.

        Args:
            name: unique in the stage.
            item: does it, and returns numbers for the row.
            limit: seconds after which the process is killed.

        Returns:
            The numbers, or None if there are none this time.
        """
        if name in self.known:
            return None
        self.known.add(name)
        if self.left <= 0:
            self._writer.row(Line(name, "not reached"))
            return None
        self._writer.begin(name, limit)
        begun = time.monotonic()

        def ended(state: lines.State, numbers: Mapping[str, Any], error: str = "") -> None:
            spent = round(time.monotonic() - begun, 3)
            self._writer.row(Line(name, state, spent, plain(numbers), error))

        try:
            numbers = item()
            self.wait()
        except FailedError as error:
            self.failed.add(name)
            ended("failed", error.numbers, str(error))
        except (MemoryError, torch.OutOfMemoryError) as error:
            ended("no memory", {}, first_line(error))
            self._go_on_after(error)
        except Exception as error:
            traceback.print_exc()
            ended("failed", {}, f"{type(error).__name__}: {first_line(error)}")
            self._go_on_after(error)
        else:
            self.right.add(name)
            ended("ok", numbers)
            return numbers
        return None

    def note(self, name: str, why: str, state: lines.State = "not reached") -> None:
        """A row without running anything."""
        if name not in self.known:
            self.known.add(name)
            self._writer.row(Line(name, state, 0.0, {}, why))

    def fact(self, **facts: object) -> None:
        """Something about the stage as a whole."""
        self._writer.fact(**{name: plain(value) for name, value in facts.items()})

    def keep(self, row: Row) -> None:
        """Add a row of a benchmark to the report's, in the form of bench/results."""
        write([row], self.roofline, self.out, ROWS)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _go_on_after(self, error: BaseException) -> None:
        """Give memory back; leave the process if the device has left us."""
        traceback.clear_frames(error.__traceback__)
        if self.device.type != "cuda":
            return
        gc.collect()  # loops that torch.compile was asked for hold themselves
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.zeros(1, device=self.device).add_(1).item()
            if torch.cuda.current_stream() != torch.cuda.default_stream():
                raise RuntimeError("a capture was broken off")
        except Exception as lost:
            # After an illegal access every call fails, and after a capture that was refused torch's
            # allocator does: only a new process has a whole device again.
            print(f"the device is lost: {first_line(lost)}", flush=True)
            os._exit(LOST_DEVICE)


def first_line(error: BaseException) -> str:
    """An error in a line."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    return told[0][:300] if told else type(error).__name__


def plain(value: Any) -> Any:  # noqa: ANN401
    """A value as JSON can hold it; a number that is not finite as a word."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def main(stage: Callable[[Context], None], name: str) -> None:
    """A stage's process, from its command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    if asked.dry_run:
        torch.set_num_threads(min(2, torch.get_num_threads()))
    gc.collect()
    gc.freeze()  # a capture collects garbage first, which is to be quick
    stage(Context(name, asked.work, asked.out, asked.seconds, dry=asked.dry_run))
