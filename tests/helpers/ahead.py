"""Compile what a test module records, in a process of its own, and count in the assembly."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = [
    "sm_90",
    *(pytest.param(target, marks=pytest.mark.slow) for target in ("sm_80", "sm_100", "gfx942")),
]
# What the tests count in PTX; of gfx942 only double precision.
PATTERNS = {
    "fma": r"\bfma\.",
    "sloppy": r"\b(?:add|sub|mul)\.f32|sqrt\.approx",
    "sqrt": r"\bsqrt\.rn\.f32",
    "ftz": r"\.ftz",
    "load_v4": r"\bld\.global\S*\.v4\.b32",
    "store_v4": r"\bst\.global\S*\.v4\.b32",
    "bf16": r"\bcvt\.rn\.bf16",
}
# Of a launch whose last block merges what the others left: in which order that happens.
ORDER = {
    "st.global": "part",
    "bar.sync": "barrier",
    "acq_rel.add": "arrival",
    "ld.global.cg": "merge",
}


def compiled(target: str, module: str, function: str) -> list[dict[str, Any]]:
    """Compile the launches that a function of a module in tests/kernels records and returns.

    Returns:
        The fields of `bench.compiled.Compiled`, and how often each of `PATTERNS` is found.
    """
    found = run("--target", target, "--launches", f"tests.kernels.{module}:{function}")
    for each in found:
        text = "" if target.startswith("gfx") else each["assembly"]
        each |= {name: len(re.findall(pattern, text)) for name, pattern in PATTERNS.items()}
    return found


def run(*arguments: str) -> list[dict[str, Any]]:
    """Run `python -m bench.compiled`; the fields of `bench.compiled.Compiled`."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.compiled", "--json", "--assembly", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def order(assembly: str) -> list[str]:
    """Stores, barriers, arrivals and merging loads of PTX, in their order."""
    lines = assembly.splitlines()
    return [kind for line in lines for text, kind in ORDER.items() if text in line]
