"""Count, time and predict; write bench/results/scaling.json."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.compiled import record
from bench.counting.iteration import count
from bench.scaling.costs import Axis, counted, timed
from bench.scaling.fits import exponent
from bench.scaling.model import Speeds, predict
from bench.timing.rows import RESULTS, machine_key
from fastinfogan import experiments
from fastinfogan.engine import choose_precision
from fastinfogan.engine.config import hardware, versions

COUNTED, TIMED = "mnist", "mnist"
CLUSTERS = ((1, 128), (8, 16), (8, 128), (800, 64))
"""GPUs, and rows of the batch for each: 8 GPUs with the published batch of 128 and with 1,024."""


def fitted(axis: Axis) -> dict[str, Any]:
    """An axis with the exponents of its costs."""
    return {
        "sizes": axis.sizes,
        "costs": axis.costs,
        "exponents": {
            name: asdict(exponent(axis.sizes, costs)) for name, costs in axis.costs.items()
        },
    }


def report(device: torch.device, rounds: int) -> dict[str, Any]:
    """All of it, as JSON holds it."""
    precision = choose_precision("auto", device)[0].name
    predictions = [
        predict(name, gpus, rows, batch_norm).to_dict()
        for name in experiments.EXPERIMENTS
        for gpus, rows in CLUSTERS
        for batch_norm in (("synchronised", "per-rank") if gpus > 1 else ("synchronised",))
    ]
    return {
        "hardware": hardware(),
        "versions": versions(),
        "machine": machine_key(device),
        "experiment": TIMED,
        "precision": precision,
        "iterations": {name: _counted(name) for name in experiments.EXPERIMENTS},
        "counted": {k: fitted(a) for k, a in counted(experiments.get(COUNTED)).items()},
        "timed": {k: fitted(a) for k, a in timed(TIMED, precision, device, rounds).items()},
        "speeds": asdict(Speeds()),
        "model": predictions,
    }


def _counted(name: str) -> dict[str, Any]:
    """One iteration, and the trunk of its D step: real and generated images as two groups."""
    e = experiments.get(name)
    return asdict(count(e)) | {"trunk_launches": len(record(e)["D step trunk"])}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of timing, for each size")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = report(device, asked.rounds)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(asked.out)


if __name__ == "__main__":
    main()
