"""Collects what the benchmarks found and prints it as a table at the end."""

from typing import Any

import pytest

_ROWS: list[str] = []


@pytest.fixture
def report() -> list[str]:
    """Lines for the closing table."""
    return _ROWS


def pytest_terminal_summary(terminalreporter: Any) -> None:  # noqa: ANN401 - pytest's is untyped
    """Print the table."""
    if _ROWS:
        terminalreporter.section("measured here, ours against the peer, interleaved")
        for row in _ROWS:
            terminalreporter.line(row)
