"""Count, time and predict; write bench/results/scaling.json."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.compiled import record
from bench.counting.iteration import count
from bench.scaling.costs import counted, timed
from bench.scaling.model import Speeds, predict
from bench.timing.rows import RESULTS, machine_key
from fastinfogan import experiments
from fastinfogan.engine import choose_precision
from fastinfogan.engine.config import hardware, versions
from fastinfogan.files import write_json

COUNTED, TIMED = "mnist", "mnist"
CLUSTERS = ((1, 128), (8, 16), (8, 128), (800, 64))
"""GPUs, and rows of the batch for each: 8 GPUs with the published batch of 128 and with 1,024."""


def report(device: torch.device, rounds: int, before: dict[str, Any] | None) -> dict[str, Any]:
    """Count, time and predict.

    Args:
        device: to time on.
        rounds: of timing.
        before: an earlier report, whose times are taken over; None to time.
    """
    precision = choose_precision("auto", device)[0].name
    predictions = [
        predict(name, gpus, rows, batch_norm).to_dict()
        for name in experiments.EXPERIMENTS
        for gpus, rows in CLUSTERS
        for batch_norm in (("synchronised", "per-rank") if gpus > 1 else ("synchronised",))
    ]
    machine = {
        "hardware": hardware(),
        "versions": versions(),
        "machine": machine_key(device),
        "experiment": TIMED,
        "precision": precision,
    }
    if before is None:
        times = {k: a.to_dict() for k, a in timed(TIMED, precision, device, rounds).items()}
    else:
        machine, times = {name: before[name] for name in machine}, before["timed"]
    return {
        **machine,
        "iterations": {name: _counted(name) for name in experiments.EXPERIMENTS},
        "counted": {k: a.to_dict() for k, a in counted(experiments.get(COUNTED)).items()},
        "timed": times,
        "speeds": asdict(Speeds()),
        "model": predictions,
    }


def _counted(name: str) -> dict[str, Any]:
    """Count one iteration, and the trunk of its D step."""
    e = experiments.get(name)
    return asdict(count(e)) | {"trunk_launches": len(record(e)["D step trunk"])}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of timing, for each size")
    parser.add_argument("--counts-only", action="store_true", help="keep the times of --out")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = json.loads(options.out.read_text()) if options.counts_only else None
    found = report(device, options.rounds, before)
    write_json(options.out, found)
    print(options.out)


if __name__ == "__main__":
    main()
