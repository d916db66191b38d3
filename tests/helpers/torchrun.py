"""Runs of several processes, started by torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

MNIST = ("train", "mnist", "--batch-size", "6", "--precision", "fp32", "--log-every", "1")


def torchrun(count: int, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
            str(count), "-m", "fastinfogan", *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def lines(run: Path) -> list[dict[str, float]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
