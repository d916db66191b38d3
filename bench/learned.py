"""What a finished run has learned, kept in bench/results/learned/ for the README.

    python -m bench.learned mnist-seed-1 runs/mnist-001 --at 300

Beside the evaluation, as `fastinfogan evaluate --json` prints it, the bounds at some iterations.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.timing.rows import RESULTS
from fastinfogan.engine import RunDirectory
from fastinfogan.errors import InputError

FOLDER = RESULTS / "learned"


def learned(path: Path, at: list[int]) -> dict[str, Any]:
    """Return what a run has learned, as JSON holds it.

    Args:
        path: the run's folder.
        at: iterations whose bounds are kept.

    Raises:
        InputError: no run there, it cannot be evaluated, or its metrics have no such iteration.
    """
    run = RunDirectory.open(path)
    command = [sys.executable, "-m", "fastinfogan", "evaluate", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(done.stderr.strip())
    lines = {line["iteration"]: line for line in run.metrics() if "mi_bound" in line}
    if missing := set(at) - set(lines):
        raise InputError(f"{path}: its metrics have no line for iteration {min(missing)}")
    return {
        "experiment": run.experiment.name,
        "seed": run.config.seed,
        "precision": run.config.precision,
        "information": run.config.information,
        "bounds": {
            step: {k: v for k, v in lines[step].items() if k.startswith("mi_")} for step in at
        },
        "highest": max(line["mi_bound"] for line in lines.values()),
        "evaluation": json.loads(done.stdout),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.learned", description=__doc__)
    parser.add_argument("name", help="of the file in bench/results/learned/")
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--at", type=int, nargs="*", default=[], help="iterations to keep")
    asked = parser.parse_args()
    try:
        found = learned(asked.run, asked.at)
    except InputError as error:
        print(f"learned: {error}", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{asked.name}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
