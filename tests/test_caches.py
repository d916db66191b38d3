"""Compiled programs are kept where a second run finds them."""

import os
import subprocess
import sys
from pathlib import Path

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def kept(**environment: str) -> tuple[str, ...]:
    """What torch and Triton are told in a process of its own, once both are imported."""
    program = (
        "import os; from fastinfogan.cli import main; main(['info']); "
        f"print(*(os.environ[name] for name in {VARIABLES}))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    told = subprocess.run(
        [sys.executable, "-c", program], env=clean | environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    (line,) = [line for line in told.stdout.splitlines() if line.startswith("compiled programs")]
    folders = tuple(told.stdout.splitlines()[-1].split())
    assert line.endswith(", ".join(folders))
    return folders


def test_they_lie_in_the_cache_or_where_the_environment_says(tmp_path: Path) -> None:
    home = str(tmp_path)
    ours = (f"{home}/fastinfogan/inductor", f"{home}/fastinfogan/triton")
    assert kept(XDG_CACHE_HOME=home) == ours
    assert kept(XDG_CACHE_HOME=home, TRITON_CACHE_DIR="/mine") == (ours[0], "/mine")
