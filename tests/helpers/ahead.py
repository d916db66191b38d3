"""Compile recorded launches ahead of time in a process of their own, and read what they became.

Usage: python ahead.py TARGET MODULE FUNCTION, where FUNCTION records launches on "meta" tensors.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
# What the tests count in the assembly; of gfx942 only double precision.
PATTERNS = {
    "fma": r"\bfma\.",
    "sloppy": r"\b(?:add|sub|mul)\.f32|sqrt\.approx",
    "sqrt": r"\bsqrt\.rn\.f32",
    "ftz": r"\.ftz",
    "load_v4": r"\bld\.global\S*\.v4\.b32",
    "store_v4": r"\bst\.global\S*\.v4\.b32",
    "bf16": r"\bcvt\.rn\.bf16",
}


def compiled(target: str, module: str, function: str) -> list[dict[str, Any]]:
    """What a test module's launches became: the fields of `inspect.Compiled`, and counts."""
    done = subprocess.run(
        [sys.executable, __file__, target, module, function],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def main(target: str, module: str, function: str) -> None:
    from dataclasses import asdict

    from bench.compiled import compile_launches
    from fastinfogan_kernels.runtime.machine import MACHINES, assuming

    sys.path.insert(0, str(Path(__file__).parents[2]))
    with assuming(MACHINES[target]):
        launches = getattr(importlib.import_module(module), function)()
    found = []
    for launch in launches:
        told = asdict(compile_launches([launch], target)[0])
        kernel = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.parameters)
        text = kernel.asm.get("ptx", "") if not target.startswith("gfx") else ""
        counts = {name: len(re.findall(pattern, text)) for name, pattern in PATTERNS.items()}
        found.append(told | counts)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
