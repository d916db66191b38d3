"""Collect everything that a GPU is needed for, in a few minutes.

    python -m bench.gpu_report [--minutes 8] [--out DIR] [--dry-run]

From the tree, on any CUDA machine with torch and Triton, without a network. Leaves in DIR, which
holds at most eight files: report.json, report.html, rows.json (as in bench/results), the tuned
launch_table.json, two traces and log.txt. Prints a table last.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from bench.gpu_report.budget import allowance

if TYPE_CHECKING:
    from bench.gpu_report.report import Report
    from bench.gpu_report.stages import Stage

ROOT = Path(__file__).parents[2]
_LARGEST_LOG = 8 << 20


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything, about")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of the report")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, what can be done there")
    parser.add_argument("--only", default="", metavar="STAGE,...", help="run these alone; what a "
                        "report in --out has of the others stays")  # fmt: skip
    parser.add_argument("--skip", default="", metavar="STAGE,...", help="leave these out")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code: 0, or 1 if a row failed, or 2 if nothing could be run."""
    begun = time.monotonic()
    asked = parse(arguments)
    if not 0.2 <= asked.minutes <= 600:
        return _refuse(f"--minutes is 0.2 to 600, not {asked.minutes:g}")
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return _refuse(f"{package} is not installed, and nothing can be measured without it")
    from fastinfogan.errors import InputError

    try:
        return _run(asked, begun)
    except InputError as error:
        return _refuse(str(error))


def _run(asked: argparse.Namespace, begun: float) -> int:
    import torch

    from bench.gpu_report import page, report
    from bench.gpu_report.report import Report, StageResult
    from bench.gpu_report.stages import STAGES
    from fastinfogan.errors import InputError

    names = [stage.name for stage in STAGES]
    only, skip = ([each for each in text.split(",") if each] for text in (asked.only, asked.skip))
    for name in (*only, *skip):
        if name not in names:
            raise InputError(f"no stage {name!r}; there are {', '.join(names)}")
    if not asked.dry_run and not torch.cuda.is_available():
        raise InputError("torch sees no GPU here; --dry-run does on a CPU what can be done there")
    out = asked.out.absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written to: {error}") from error
    before = report.read(out / report.NAME) if (out / report.NAME).exists() else None
    if before and before.arguments.get("dry_run") != asked.dry_run:
        raise InputError(f"{out}: holds a report of another kind, dry or not; name another --out")
    chosen = [s for s in STAGES if (not only or s.name in only) and s.name not in skip]
    told = Report(
        {"minutes": asked.minutes, "dry_run": asked.dry_run, "only": only, "skip": skip},
        [
            before.stage(s.name) if before and s not in chosen and before.stage(s.name).lines
            else StageResult(s.name, s.title, "not reached" if s in chosen else "skipped")
            for s in STAGES
        ],
    )  # fmt: skip

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    work = Path(tempfile.mkdtemp(prefix="gpu-report-"))
    try:
        _stages(asked, chosen, told, work, out, begun)
    finally:
        # Also of a run that is stopped in the middle: what there is, is kept.
        told.seconds = round(time.monotonic() - begun, 1)
        told.write(out)
        _keep_log(work, out, names)
        page.write(told, out)
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{told.seconds:.0f} s; {out / page.NAME}\n")
    print("\n".join(report.table(told)))
    bad = any(stage.failures or stage.error for stage in told.stages)
    return 1 if bad else 0


def _stages(
    asked: argparse.Namespace,
    chosen: "Sequence[Stage]",
    told: "Report",
    work: Path,
    out: Path,
    begun: float,
) -> None:
    """Run them, one after the other; what each found is on disk before the next one starts."""
    from bench.gpu_report.report import StageResult
    from bench.gpu_report.supervise import Ended, supervise

    for number, stage in enumerate(chosen):
        left = 60 * asked.minutes - (time.monotonic() - begun)
        limit = allowance(left, [each.share for each in chosen[number:]])
        if not limit:
            print(f"{stage.name:12s} not reached: {max(left, 0):.0f} s are left", flush=True)
            continue

        def command(seconds: float, module: str = stage.module) -> list[str]:
            found = [sys.executable, "-m", module, "--work", str(work), "--out", str(out)]
            return [*found, "--seconds", f"{seconds:.1f}", *["--dry-run"] * asked.dry_run]

        file = work / f"{stage.name}.jsonl"
        environment = {**_environment(), **(stage.environment if asked.dry_run else {})}
        ended = Ended("stopped", 0.0, 1)
        try:
            print(f"{stage.name:12s} {limit:4.0f} s at the most", flush=True)
            ended = supervise(command, file, work / f"{stage.name}.log", limit, environment, ROOT)
        finally:
            found = StageResult.of(stage.name, stage.title, limit, ended, file)
            told.stages = [found if each.name == stage.name else each for each in told.stages]
            told.seconds = round(time.monotonic() - begun, 1)
            told.write(out)


def _environment() -> dict[str, str]:
    """Of all stages: nothing is held back of what they print, and what they compile is shared."""
    cache = Path(tempfile.gettempdir()) / f"fastinfogan-gpu-report-{os.getuid()}"
    found = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
    }
    return {**found, **{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}}


def _keep_log(work: Path, out: Path, names: Sequence[str]) -> None:
    """What all stages printed, the end of each."""
    most = _LARGEST_LOG // len(names)
    with (out / "log.txt").open("wb") as log:
        for name in names:
            file = work / f"{name}.log"
            if file.exists():
                log.write(f"==== {name}\n".encode() + file.read_bytes()[-most:] + b"\n")


def _refuse(why: str) -> int:
    print(f"gpu_report: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
