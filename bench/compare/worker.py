"""A process that holds one side: this tree's bench/ over that side's fastinfogan.

    python -m bench.compare.worker TREE NATIVE PIPE

It is told what to do through a pipe and answers there, in JSON. Nothing of fastinfogan may be
imported before the side's tree is the only place that it can come from.
"""

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "fastinfogan"
_TURN = 10e-3
"""Seconds of a turn, about: short runs are repeated, and a turn's time is the median."""
_MOST = 5
"""Stretches of a turn at the most."""
_WARM = 50e-3
"""A run as short as this is preceded by an untimed one: the other side has emptied the caches."""
_PAUSE = 2e-3
"""Seconds before a turn: the other process's threads wait for work that long before they sleep."""


class OneTree(MetaPathFinder):
    """Finds fastinfogan in one tree and nowhere else, whatever is installed.

    Args:
        tree: the checkout.
        native: the compiled module built of it, or None.
    """

    def __init__(self, tree: Path, native: Path | None) -> None:
        self.tree, self.native = tree, native

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importlib asks."""
        if name.partition(".")[0] != _PACKAGE:
            return None
        if name == f"{_PACKAGE}._native":
            spec = spec_from_file_location(name, self.native) if self.native else None
        else:
            spec = PathFinder.find_spec(name, [str(self.tree)] if name == _PACKAGE else path)
        if spec is None:
            raise ModuleNotFoundError(f"{self.tree} has no {name}", name=name)
        return spec

    def strangers(self) -> list[str]:
        """Modules of the package that came from elsewhere."""
        root = self.tree.resolve()
        found = []
        for name, module in sorted(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if name.partition(".")[0] != _PACKAGE or file is None:
                continue
            if name == f"{_PACKAGE}._native":
                if Path(file) != self.native:
                    found.append(file)
            elif not Path(file).resolve().is_relative_to(root):
                found.append(file)
        return found


class Worker:
    """What can be asked of a side.

    Args:
        finder: of its modules.
    """

    def __init__(self, finder: OneTree) -> None:
        self.finder = finder
        self._planned: dict[str, Any] = {}
        self._stretch: Any = None
        self._case: Any = None
        self._once = 0.0

    def hello(self) -> dict[str, Any]:
        """Where the code comes from.

        Raises:
            RuntimeError: not from the side's tree.
        """
        package = importlib.import_module(_PACKAGE)
        backend = None
        try:
            backend = importlib.import_module(f"{_PACKAGE}._native")
        except ImportError:
            if self.finder.native:
                raise
        self._check_origin()
        return {"package": package.__file__, "native": backend and backend.__file__}

    def plan(self, modules: Sequence[str]) -> dict[str, Any]:
        """The cases that can be made, and the modules of cases that this side has no use for."""
        import torch

        device = _device()
        title = f"CPU, {torch.get_num_threads()} threads"
        if device.type == "cuda":
            title = torch.cuda.get_device_name(device)
        failed = {}
        for name in modules:
            try:
                planned = importlib.import_module(name).planned(device)
            except Exception as error:  # whatever this side's code raises
                failed[name] = _told(error)
                continue
            self._planned |= {f"{each.group}/{each.name}": each for each in planned}
        cases = [
            {"key": key, "short": each.short, "budget": each.budget}
            for key, each in self._planned.items()
        ]
        return {"cases": cases, "failed": failed, "device": title}

    def prepare(self, case: str) -> dict[str, Any]:
        """Make a case, and warm it up."""
        from bench.timing.clock import HostClock, clock_for

        self.release()
        device = _device()
        try:
            made = self._planned[case].make(device)
            clock = HostClock(device) if made.timed == "host" else clock_for(device)
            self._stretch = clock.prepare(made.run, steady=made.timed == "steady")
            self._once = self._stretch.seconds()
        except Exception as error:  # whatever this side's code raises
            self.release()
            return {"failed": _told(error)}
        self._check_origin()
        self._case = made
        return {"seconds": self._once, "cache": self._stretch.cache, "units": made.units}

    def time(self) -> dict[str, Any]:
        """Seconds of a unit of the case, a turn's median."""
        once = self._once
        stretch = once * self._stretch.repeat
        time.sleep(_PAUSE)
        if once < _WARM and self._case.timed != "host":
            self._case.run()
        count = max(1, min(_MOST, round(_TURN / max(stretch, 1e-9))))
        taken = [self._stretch.seconds() for _ in range(count)]
        return {"seconds": statistics.median(taken) / self._case.units}

    def release(self) -> dict[str, Any]:
        """Forget the case."""
        if self._stretch is not None:
            self._stretch.release()
        self._stretch = self._case = None
        return {}

    def count(self, only: Sequence[str]) -> dict[str, Any]:
        """See `counting.count_all`."""
        from bench.compare.counting import count_all

        found = count_all(only)
        self._check_origin()
        return found

    def _check_origin(self) -> None:
        if strangers := self.finder.strangers():
            raise RuntimeError(f"{strangers[0]} is not of {self.finder.tree}")


def _device() -> Any:  # noqa: ANN401 - torch is not imported at the top
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _told(error: Exception) -> str:
    """A failure in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def main(tree: str, native: str, pipe: str) -> None:
    """Answer until the pipe is closed."""
    finder = OneTree(Path(tree), Path(native) if native else None)
    sys.meta_path.insert(0, finder)
    worker = Worker(finder)
    with Connection(int(pipe)) as connection:
        while True:
            try:
                asked = json.loads(connection.recv_bytes())
            except EOFError:
                return
            command: Callable[..., dict[str, Any]] = getattr(worker, asked.pop("do"))
            connection.send_bytes(json.dumps(command(**asked)).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
