"""What the process of a stage is given: its device, its time, and the journal of what it finds."""

import argparse
import gc
import importlib
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.accuracy import MismatchError
from bench.gpu_report.journal import Item, Journal, State, first_line
from bench.gpu_report.stages import STAGES
from bench.gpu_report.supervise import LOST_DEVICE
from bench.timing.roofline import Roofline
from bench.timing.rows import Row, write

ROWS = "rows"
ITEM_SECONDS = 60.0
"""That an item may take, if its stage says nothing else."""
_SPARE = 1.0
"""Seconds before its time is up at which a stage begins nothing more."""


class FailedError(AssertionError):
    """An item's check has failed, and it found numbers nevertheless."""

    def __init__(self, reason: str, numbers: Mapping[str, Any]) -> None:
        super().__init__(reason)
        self.numbers = numbers


class Context:
    """What a stage works with.

    Args:
        name: of the stage.
        work: folder of what stages leave for each other.
        out: folder of the report.
        seconds: that the stage may take, from now.
        dry: on a CPU, as small as can be.

    Attributes:
        device: to be measured.
        roofline: of the device; measured when first asked for.
        known: names of the items that need not be run any more.
        ok: names of those that succeeded, in this process or an earlier one.
    """

    def __init__(self, name: str, work: Path, out: Path, seconds: float, *, dry: bool) -> None:
        self.name, self.work, self.out, self.dry = name, work, out, dry
        self.device = torch.device("cpu") if dry else torch.device("cuda", 0)
        self.roofline = Roofline(self.device)
        self._deadline = time.monotonic() + seconds - _SPARE
        self.journal = Journal(work / f"{name}.jsonl")
        items = self.journal.read().items
        self.known = {item.name for item in items}
        self.ok = {item.name for item in items if item.state == "ok"}
        self.fact = self.journal.fact

    @property
    def left(self) -> float:
        """Seconds until nothing more may be begun."""
        return self._deadline - time.monotonic()

    def run(
        self,
        name: str,
        item: Callable[..., Mapping[str, Any]],
        *arguments: Any,
        limit: float = ITEM_SECONDS,
        least: float = 0.0,
    ) -> Mapping[str, Any] | None:
        """Run an item, unless an earlier process of this stage has.

        Args:
            name: unique in the stage.
            item: does it, and returns numbers for the report.
            arguments: of the item.
            limit: seconds after which the process is killed.
            least: seconds that must be left to begin it.

        Returns:
            The numbers, or None if there are none this time.
        """
        if name in self.known:
            return None
        if self.left <= least:
            self.skip(name, f"{max(self.left, 0):.0f} s are left")
            return None
        self.known.add(name)
        self.journal.begin(name, limit)
        begun = time.monotonic()

        def end(state: State, numbers: Mapping[str, Any], error: str = "") -> None:
            seconds = round(time.monotonic() - begun, 3)
            self.journal.add(Item(name, state, seconds, numbers, error))

        try:
            numbers = item(*arguments)
            self.synchronize()
        except (FailedError, MismatchError) as error:
            end("failed", getattr(error, "numbers", {}), first_line(error))
        except (MemoryError, torch.OutOfMemoryError) as error:
            end("no memory", {}, first_line(error))
            self._recover(error)
        except Exception as error:
            traceback.print_exc()
            end("failed", {}, f"{type(error).__name__}: {first_line(error)}")
            self._recover(error)
        else:
            self.ok.add(name)
            end("ok", numbers)
            return numbers
        return None

    def skip(self, name: str, reason: str) -> None:
        """Record why an item is not run."""
        if name not in self.known:
            self.known.add(name)
            self.journal.add(Item(name, "not reached", error=reason))

    def write_row(self, row: Row) -> None:
        """Add a benchmark's row to the report's, in the form of bench/results."""
        write([row], self.roofline, self.out, ROWS)

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _recover(self, error: BaseException) -> None:
        traceback.clear_frames(error.__traceback__)
        if self.device.type == "cuda":
            gc.collect()  # compiled loops hold themselves
            exit_if_device_is_lost()


def exit_if_device_is_lost() -> None:
    """Give memory back; leave the process if its CUDA context is of no more use.

    After an illegal access every call fails, and after a capture that was refused torch's allocator
    does: only a new process has a whole device again.
    """
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.zeros(1, device="cuda").add_(1).item()
        if torch.cuda.current_stream() != torch.cuda.default_stream():
            raise RuntimeError("a capture was broken off")
    except Exception as lost:
        print(f"the device is lost: {first_line(lost)}", flush=True)
        os._exit(LOST_DEVICE)


def main() -> None:
    """Run a stage in this process, as the report's command starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    module, _, function = next(s for s in STAGES if s.name == args.stage).run.partition(":")
    if args.dry_run:
        torch.set_num_threads(min(2, torch.get_num_threads()))
    run = getattr(importlib.import_module(f"bench.gpu_report.{module}"), function)
    gc.collect()
    gc.freeze()  # a capture collects garbage first, which must be quick
    run(Context(args.stage, args.work, args.out, args.seconds, dry=args.dry_run))


if __name__ == "__main__":
    main()
