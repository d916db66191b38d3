"""The progress bar of every command."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

RENDERING = "rendering images, once; they are cached"
_LINES = 10


class ProgressBar:
    """A bar on a terminal; elsewhere a line at the start and after each tenth of the work.

    Nothing is shown before the first `update`. Usable as a callback: `bar(done, total)`.

    Args:
        what: what is done, such as "decoding".
        total: steps in all; may be given to `update` instead.
        unit: of the rate that is shown, such as "images"; None for no rate.
        console: where to print; by default stderr, because --json has stdout.
    """

    def __init__(
        self,
        what: str,
        total: int = 0,
        *,
        unit: str | None = None,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._what, self._total, self._unit = what, total, unit
        self._bar: Progress | None = None
        self._first, self._next_line = 0, 0
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()  # after Ctrl-C, too, or the terminal stays without a cursor

    def update(self, done: int, total: int | None = None, text: str = "") -> None:
        """Show how much is done.

        Args:
            done: steps, those of an earlier run included.
            total: steps in all.
            text: shown beside it, such as the losses.
        """
        self._total = total or self._total
        if self._bar is None:
            self._start(done)
        assert self._bar is not None
        if self._unit and done > self._first:
            rate = (done - self._first) / max(time.monotonic() - self._begun, 1e-3)
            text = f"{text}  {rate:,.0f} {self._unit}/s".lstrip()
        (task,) = self._bar.task_ids
        shown = f"{self._what}  {text}".rstrip()
        self._bar.update(task, completed=done, total=self._total, description=shown)
        if not self.console.is_terminal and (done >= self._next_line or done == self._total):
            self.console.print(f"{self._what} {done:,} of {self._total:,}  {text}".rstrip())
            self._next_line = done + max(self._total // _LINES, 1)

    __call__ = update

    def _start(self, done: int) -> None:
        self._first = self._next_line = done
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._bar.add_task(self._what, total=self._total, completed=done)
        self._bar.start()
