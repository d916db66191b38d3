"""Run an iterator ahead of its consumer, in a thread."""

from collections import deque
from collections.abc import Callable, Generator
from threading import Condition, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """An iterator run in a thread, a bounded number of items ahead.

    Args:
        items: the iterator; closed in that thread.
        depth: largest number of items that wait to be taken.
    """

    def __init__(self, items: Generator[T], depth: int) -> None:
        self._items, self._depth = items, depth
        self._ready: deque[T] = deque()
        self._changed = Condition()
        self._error: BaseException | None = None
        self._ended = self._stopped = False
        self._thread = Thread(target=self._work, daemon=True, name="fastinfogan prefetch")
        self._thread.start()

    def _work(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._ready.append(item)
                    self._changed.notify_all()
                    while len(self._ready) >= self._depth and not self._stopped:
                        self._changed.wait()
                    if self._stopped:
                        break
            self._items.close()
        except BaseException as error:  # raised again by `take`, in its caller's thread
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to take."""
        with self._changed:
            return self._ended and not self._ready

    def take(self, stop: Callable[[], bool] = lambda: False, *, wait: bool = True) -> T | None:
        """Return the next item.

        Args:
            stop: polled while waiting; True ends the wait.
            wait: whether to wait for an item that is not ready.

        Returns:
            None if there are no more items, or none is ready and the wait ended.

        Raises:
            BaseException: what the iterator raised.
        """
        with self._changed:
            while wait and not self._ready and not self._ended and not stop():
                self._changed.wait(0.1)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            if self._ended and self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """Stop at the next item."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
