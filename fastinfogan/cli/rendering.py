"""How it is told that a set of images is being rendered."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Rendering:
    """A bar on the terminal, or one line where there is none; on stderr, as --json has stdout."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None

    def __enter__(self) -> "Rendering":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()  # also after Ctrl-C, lest the terminal stay without a cursor

    def __call__(self, done: int, total: int) -> None:
        """Tell that so many images of so many are rendered."""
        if self._bar is None:
            self._bar = Progress(
                TextColumn("rendering images, once; they are kept"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                disable=not self._console.is_terminal,
            )
            self._bar.add_task("", total=total)
            self._bar.start()
            if not self._console.is_terminal:
                self._console.print(f"rendering {total:,} images, once; they are kept")
        self._bar.update(self._bar.task_ids[0], completed=done)
