"""A pytest plugin that writes each test's outcome into a stage's journal, and runs one part.

GPU_REPORT_JOURNAL names the journal; GPU_REPORT_PART "2/8" is the third of eight parts. Started
again after a crash, it runs the tests that the journal lacks.
"""

import os
import sys
from pathlib import Path

import pytest

from bench.gpu_report.journal import Item, Journal, State, first_line
from bench.gpu_report.supervise import JOURNAL, PART

_FIRST = ("iteration", "chain", "adam", "head")
"""Words in the names of the files that come first, in this order."""
_LIMIT = 240.0
"""Seconds of a test, whose kernels may have to be compiled."""


class Recorder:
    """Writer of the journal of one pytest process."""

    def __init__(self, journal: Journal, part: int, parts: int) -> None:
        self._journal, self._part, self._parts = journal, part, parts
        self._known = {item.name for item in journal.read().items}
        self._reports: list[pytest.TestReport] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Select this process's part without what is done, most valuable first."""
        items.sort(key=lambda item: _rank(item.path.name))
        part = items[self._part :: self._parts]
        self._journal.fact(**{f"tests of part {self._part}": len(part)})
        items[:] = [item for item in part if item.nodeid not in self._known]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record a file that cannot be imported as one failed item, of the first part."""
        name = f"collecting {report.nodeid}"
        if report.failed and not self._part and name not in self._known:
            error = report.longreprtext.strip().splitlines()[-1]
            self._journal.add(Item(name, "failed", error=error[:300]))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._reports = []
        self._journal.begin(nodeid, _LIMIT)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record a phase of a test; the last one ends it."""
        self._reports.append(report)
        if report.when != "teardown":
            return
        state: State = "ok"
        error = ""
        for each in self._reports:
            if each.skipped:
                state = "not reached"
                error = each.longrepr[2] if isinstance(each.longrepr, tuple) else each.longreprtext
            elif each.failed:
                crash = getattr(each.longrepr, "reprcrash", None)
                state, error = "failed", crash.message if crash else each.longreprtext
                break
        seconds = round(sum(each.duration for each in self._reports), 3)
        error = first_line(error) if error else ""
        self._journal.add(Item(report.nodeid, state, seconds, {}, error))
        torch = sys.modules.get("torch")
        if state == "failed" and torch and torch.cuda.is_initialized():
            from bench.gpu_report.context import exit_if_device_is_lost

            exit_if_device_is_lost()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Exit with 0 although tests failed: the journal lists them."""
        if session.exitstatus in (
            pytest.ExitCode.TESTS_FAILED,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.OK


def _rank(file: str) -> int:
    return next((i for i, word in enumerate(_FIRST) if word in file), len(_FIRST))


def pytest_configure(config: pytest.Config) -> None:
    """Register the recorder, where the report asks for it."""
    if JOURNAL in os.environ:
        part, parts = map(int, os.environ.get(PART, "0/1").split("/"))
        recorder = Recorder(Journal(Path(os.environ[JOURNAL])), part, parts)
        config.pluginmanager.register(recorder, "gpu-report-recorder")
