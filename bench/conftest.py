"""`pytest bench/`: each case is checked, timed interleaved with its baselines, and stored as a row.

    pytest bench/ --short           about a minute
    pytest bench/ -k "mnist and bf16" --results rows

A case that does not compute what the reference does fails and is not timed.
"""

import gc
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cases import Case, Planned
from bench.timing.interleaved import Interleaved
from bench.timing.measure import measure
from bench.timing.roofline import Roofline
from bench.timing.rows import FASTINFOGAN, RESULTS, Row, lines, write

ORDER = ("test_ops.py", "test_blocks.py", "test_iteration.py", "test_data.py", "test_startup.py")
_LEAST = 3
"""Rounds of a case that takes longer than its budget."""
_LONG = 5.0
"""Seconds of a round from which two must do."""
_PATIENCE = 420.0
"""Seconds from which every case has its fewest rounds: on a busy machine all must end in time."""
_CEILINGS = pytest.StashKey[Roofline]()
_ROWS = pytest.StashKey[list[Row]]()
_BEGUN = pytest.StashKey[float]()

Measured = Callable[[Case, float], Row]
"""Checks and times a case; of it and the seconds that it is worth."""


def device() -> torch.device:
    """Choose where everything is measured: the first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastinfogan")
    group.addoption("--short", action="store_true", help="only the set of about a minute")
    group.addoption(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="where rows are stored"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Replace pytest-benchmark's table."""
    config.addinivalue_line("markers", "short: in the set of about a minute")
    # Even windows are padded unevenly, as in the published networks; torch would warn each time.
    config.addinivalue_line("filterwarnings", "ignore:Using padding='same' with even kernel")
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script_method` is deprecated")
    config.option.benchmark_quiet = True
    config.stash[_CEILINGS] = Roofline(device())
    config.stash[_ROWS] = []
    config.stash[_BEGUN] = time.monotonic()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the modules; select the short set, if that is asked for."""
    items.sort(key=lambda item: ORDER.index(item.path.name) if item.path.name in ORDER else 99)
    if config.option.short:
        left = [item for item in items if item.get_closest_marker("short") is None]
        items[:] = [item for item in items if item.get_closest_marker("short") is not None]
        config.hook.pytest_deselected(items=left)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Skip what does not fit into a GPU's memory."""
    try:
        return (yield)
    except torch.OutOfMemoryError as error:
        pytest.skip(f"it does not fit into this GPU's memory: {error}")


def cases(plans: list[Planned]) -> Any:  # noqa: ANN401 - pytest's mark
    """Parametrize a test by plans."""
    parameters = [
        pytest.param(plan, id=plan.name, marks=[pytest.mark.short] if plan.short else [])
        for plan in plans
    ]
    return pytest.mark.parametrize("planned", parameters)


@pytest.fixture
def measured(benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Measured]:  # noqa: ANN401
    """Check and time a case; a round is one of pytest-benchmark's."""
    roofline = request.config.stash[_CEILINGS]

    def by_benchmark(pair: Interleaved, rounds: int, budget: float) -> None:
        begun = time.perf_counter()
        pair()
        once = time.perf_counter() - begun
        least = _LEAST if once < _LONG else 2
        if time.monotonic() - request.config.stash[_BEGUN] > _PATIENCE:
            budget = 0.0
        more = max(least, min(rounds, int(budget / once))) - 1
        benchmark.pedantic(pair, rounds=more)

    def run(case: Case, budget: float) -> Row:
        benchmark.group = case.group
        row = measure(case, roofline, budget=budget, timing=by_benchmark)
        benchmark.extra_info |= asdict(row)
        rows = request.config.stash[_ROWS]
        if rows and rows[-1].group != row.group:
            roofline.remeasure()
        rows.append(row)
        return row

    yield run
    gc.collect()  # a case's closures hold each other
    if roofline.device.type == "cuda":
        torch.cuda.empty_cache()


def _by_the_best(roofline: Roofline, row: Row) -> Row:
    """Recompute a row's share by the best roofline of the run."""
    if row.share is None or row.precision is None:
        return row
    taken = row.seconds[FASTINFOGAN].median
    share = roofline.share(row.precision, row.flops, row.bytes, taken)  # type: ignore[arg-type]
    return replace(row, share=share)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:  # noqa: ANN401
    """Store the rows and print them."""
    rows, roofline = config.stash[_ROWS], config.stash[_CEILINGS]
    if not rows:
        return
    roofline.remeasure()
    rows = [_by_the_best(roofline, row) for row in rows]
    write_line = terminalreporter.line
    terminalreporter.section("fastinfogan against PyTorch, interleaved in one process")
    write_line("median; then the ratio to each baseline's time, median (quartiles)")
    write_line("")
    for line in lines(rows):
        write_line(line)
    rates = [f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in roofline.flops.items()]
    rates += [f"{roofline.copy / 1e9:,.1f} GB/s copied"] if roofline.copy else []
    if rates:
        write_line(f"roofline, measured in this run: {', '.join(rates)}")
    file = write(rows, roofline, config.option.results)
    write_line(f"{len(rows)} rows in {time.monotonic() - config.stash[_BEGUN]:.0f} s, in {file}")
