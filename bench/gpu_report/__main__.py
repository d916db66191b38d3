"""Collect everything that a GPU is needed for, in a few minutes.

    python -m bench.gpu_report [--minutes 8] [--out DIR] [--dry-run]

From the tree, on any CUDA machine with torch and Triton, without a network; pytest and hypothesis
run the kernels' test suite. Leaves in DIR, which holds at most eight files: report.json,
report.md, rows.json (as in bench/results), the tuned launch_table.json, what MNIST's run draws,
two traces and log.txt. Prints a table last.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from bench.gpu_report.journal import Journal
from bench.gpu_report.report import NAME, PAGE, GpuReport, StageResult
from bench.gpu_report.stages import STAGES, Stage, allowance
from bench.gpu_report.supervise import JOURNAL, PART, Ended, Supervisor
from fastinfogan.errors import InputError

ROOT = Path(__file__).parents[2]
_LARGEST_LOG = 8 << 20
_TEST_PROCESSES = 12
TESTS = ("tests/triton", "tests/engine/test_execution.py", "tests/test_optim.py")
CHOSEN = "triton or captured"
"""Tests of the kernels, and of what the others capture in CUDA graphs."""
_DRY_TESTS = ("tests/triton/test_draw.py", "tests/triton/test_real_images.py")
"""Of the kernels' test suite, what Triton's interpreter runs in seconds."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything, about")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of the report")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, what can be done there")
    parser.add_argument("--only", default="", metavar="STAGE,...", help="run these alone; what a "
                        "report in --out has of the others stays")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0, or 1 if an item failed, or 2 if nothing could be run."""
    begun = time.monotonic()
    try:
        return Command(parse(arguments), begun).run()
    except InputError as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return 2


class Command:
    """One run of the command.

    Args:
        args: as parsed.
        begun: when, by `time.monotonic`.

    Raises:
        InputError: an argument is wrong, or there is no GPU.
    """

    def __init__(self, args: argparse.Namespace, begun: float) -> None:
        self._args, self._begun = args, begun
        known = [stage.name for stage in STAGES]
        only = [name for name in args.only.split(",") if name]
        if not 0.2 <= args.minutes <= 600:
            raise InputError(f"--minutes is 0.2 to 600, not {args.minutes:g}")
        for name in only:
            if name not in known:
                raise InputError(f"no stage {name!r}; there are {', '.join(known)}")
        if not args.dry_run and not torch.cuda.is_available():
            raise InputError("torch sees no GPU here; --dry-run does on a CPU what can be done")
        self._out: Path = args.out.absolute()
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self._out}: cannot be written to: {error}") from error
        file = self._out / NAME
        before = GpuReport.read(file) if file.exists() else None
        if before and before.arguments.get("dry_run") != args.dry_run:
            raise InputError(f"{self._out}: holds a report that is dry or not; name another --out")
        self._chosen = [stage for stage in STAGES if not only or stage.name in only]
        results = []
        for stage in STAGES:
            chosen = stage in self._chosen
            result = StageResult(stage.name, stage.title, "not reached" if chosen else "skipped")
            if before and not chosen and before.stage(stage.name).items:
                result = before.stage(stage.name)
            results.append(result)
        arguments = {"minutes": args.minutes, "dry_run": args.dry_run, "only": only}
        self.report = GpuReport(arguments, results)

    def run(self) -> int:
        """Run the stages, and write the report, also of a run that is stopped in the middle."""

        def leave(number: int, _: FrameType | None) -> NoReturn:
            raise SystemExit(128 + number)

        signal.signal(signal.SIGTERM, leave)
        self._work = Path(tempfile.mkdtemp(prefix="gpu-report-"))
        try:
            for number, stage in enumerate(self._chosen):
                left = 60 * self._args.minutes - (time.monotonic() - self._begun)
                limit = allowance(left, self._chosen[number:])
                if limit:
                    self._run_stage(stage, limit)
                else:
                    print(f"{stage.name:12s} not reached: {max(left, 0):.0f} s left", flush=True)
        finally:
            self._write()
            self._write_log()
            self.report.write_page(self._out)
            shutil.rmtree(self._work, ignore_errors=True)
        print(f"\n{self.report.seconds:.0f} s; {self._out / PAGE}\n")
        print("\n".join(self.report.table(STAGES)))
        return int(any(stage.failures or stage.error for stage in self.report.stages))

    def _run_stage(self, stage: Stage, limit: float) -> None:
        """Run a stage's processes; what they found is on disk before the next stage starts."""
        supervisors = list(self._supervisors(stage))
        ended = [Ended("stopped", 0.0, 1)] * len(supervisors)
        try:
            print(f"{stage.name:12s} {limit:4.0f} s at the most", flush=True)
            with ThreadPoolExecutor(len(supervisors)) as pool:
                futures = [pool.submit(each.run, limit) for each in supervisors]
                try:
                    ended = [future.result() for future in futures]
                except BaseException:
                    for each in supervisors:
                        each.stopping.set()
                    raise
        finally:
            found = StageResult.of(stage, limit, ended, [each.journal for each in supervisors])
            stages = self.report.stages
            self.report.stages = [found if each.name == stage.name else each for each in stages]
            self._write()

    def _supervisors(self, stage: Stage) -> Iterator[Supervisor]:
        """Yield one process of a stage, or several of the test suite, each with a part of it."""
        dry, work = self._args.dry_run, self._work
        environment = self._environment(stage)
        if stage.run:
            command = [sys.executable, "-m", "bench.gpu_report.context", stage.name, "--work",
                       str(work), "--out", str(self._out), *["--dry-run"] * dry]  # fmt: skip

            def started(seconds: float) -> list[str]:
                return [*command, "--seconds", f"{seconds:.1f}"]

            journal = Journal(work / f"{stage.name}.jsonl")
            yield Supervisor(started, journal, work / f"{stage.name}.log", environment, ROOT)
            return
        parts = 1 if dry else min(os.cpu_count() or 1, _TEST_PROCESSES)
        suite = [sys.executable, "-m", "pytest", "-p", "bench.gpu_report.pytest_plugin", "-q",
                 "-p", "no:cacheprovider", "--continue-on-collection-errors",
                 *(_DRY_TESTS if dry else [*TESTS, "-k", CHOSEN])]  # fmt: skip
        for part in range(parts):
            journal = Journal(work / f"{stage.name}-{part}.jsonl")
            of_part = {JOURNAL: str(journal.file), PART: f"{part}/{parts}", "OMP_NUM_THREADS": "1"}
            log = work / f"{stage.name}-{part}.log"
            yield Supervisor(lambda _: suite, journal, log, {**environment, **of_part}, ROOT)

    def _environment(self, stage: Stage) -> dict[str, str]:
        """Return a stage's environment: output is not buffered, caches are shared."""
        cache = Path(tempfile.gettempdir()) / f"fastinfogan-gpu-report-{os.getuid()}"
        paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        found = {
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "TRITON_CACHE_DIR": str(cache / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
            **{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        if self._args.dry_run and stage.interpreted:
            found["TRITON_INTERPRET"] = "1"
        return found

    def _write(self) -> None:
        self.report.seconds = round(time.monotonic() - self._begun, 1)
        self.report.write(self._out)

    def _write_log(self) -> None:
        """Write what all stages printed, the end of each."""
        files = sorted(self._work.glob("*.log"), key=lambda file: file.stat().st_mtime)
        with (self._out / "log.txt").open("wb") as log:
            for file in files:
                printed = file.read_bytes()[-_LARGEST_LOG // len(files) :]
                log.write(f"==== {file.stem}\n".encode() + printed + b"\n")


if __name__ == "__main__":
    sys.exit(main())
