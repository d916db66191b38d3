"""Runs of several processes, started by torchrun."""

import json
import os
import socket
import subprocess
import sys
import time
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


def without_torchrun(*arguments: str) -> list[subprocess.Popen[str]]:
    """Start two ranks as torchrun does, which would end both when one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fastinfogan", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": str(rank)},
        )
        for rank in (0, 1)
    ]


def wait_for_lines(run: Path, count: int) -> None:
    """Wait, at most a minute, until a run has logged so many lines."""
    deadline = time.monotonic() + 60
    while len(lines(run)) < count and time.monotonic() < deadline:
        time.sleep(0.05)


def lines(run: Path) -> list[dict[str, float]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
