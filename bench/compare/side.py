"""The handle of one side's process: asked through a pipe, with a limit, started anew if lost."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_PROC_BIND": "true"}
"""Each thread of OpenMP keeps to a processor of its own: where others are busy too, two threads may
otherwise share one for as long as the process lives, and each waits for the other all the time."""


class LostError(RuntimeError):
    """The process died, or did not answer in time; one line."""


class Side:
    """A worker process. A context: the process ends with it.

    Args:
        name: "base" or "head".
        tree: whose fastinfogan it runs.
        native: the tree's compiled module.
        bench: the tree whose bench/ it runs.
    """

    def __init__(self, name: str, tree: Path, native: Path | None, bench: Path) -> None:
        self.name, self.tree, self.native, self.bench = name, tree, native, bench
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._errors: IO[bytes] | None = None

    def start(self) -> None:
        """Start the process; it is not waited for."""
        self.stop()
        ours, theirs = Pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process is lost
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "bench.compare.worker",
                    str(self.tree), str(self.native or ""), str(theirs.fileno()),
                ],
                cwd=self.bench,
                env={**_ENVIRONMENT, **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for us; we end it
            )  # fmt: skip
        self._connection = ours

    def ask(self, do: str, limit: float, **arguments: Any) -> Any:  # noqa: ANN401 - JSON
        """Have something done, and wait for the answer.

        Args:
            do: a method of `worker.Worker`.
            limit: seconds.
            arguments: the method's.

        Raises:
            LostError: no answer; the process is gone.
        """
        self.send(do, **arguments)
        return self.receive(do, limit)

    def send(self, do: str, **arguments: Any) -> None:  # noqa: ANN401 - JSON
        """Have something done, without waiting."""
        if self._connection is None:
            self.start()
        assert self._connection is not None
        try:
            self._connection.send_bytes(json.dumps({"do": do, **arguments}).encode())
        except OSError as error:
            raise self._lost(do) from error

    def receive(self, do: str, limit: float) -> Any:  # noqa: ANN401 - JSON
        """The answer to what was sent.

        Raises:
            LostError: none; the process is gone.
        """
        assert self._connection is not None
        try:
            if not self._connection.poll(limit):
                self.stop()
                raise LostError(f"{self.name} did not {do} in {limit:g} s")
            return json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._lost(do) from error

    def _lost(self, do: str) -> LostError:
        assert self._process is not None
        assert self._errors is not None
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.stop()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return LostError(f"{self.name} died of {do}, {how}: {lines[-1] if lines else 'no word'}")

    def stop(self) -> None:
        """End the process, and whatever it started."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for each in (self._connection, self._errors):
            if each is not None:
                each.close()
        self._process = self._connection = self._errors = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
