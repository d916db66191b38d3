"""Every kernel that the five experiments launch, compiled ahead of time, within its budget."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from fastinfogan.kernels.tuning import MACHINES

# On sm_80 and sm_100 ptxas spills a few words to keep one more program on a processor.
STACK = {"sm_80": 16, "sm_90": 0, "sm_100": 32, "gfx942": 0}
PRODUCTS = {
    "gather_gemm_kernel",
    "weight_gradient_kernel",
    "image_block_kernel",
    "image_weight_gradient_kernel",
}


def inspected(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "fastinfogan.kernels.inspect", "--json", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def check_budget(found: list[dict[str, Any]], target: str) -> None:
    assert {each["kernel"] for each in found} >= PRODUCTS
    for each in found:
        what = (each["kernel"], each["variant"])
        assert each["target"] == target
        assert each["stack"] <= STACK[target], what
        assert each["f64"] == 0, what
        assert each["shared"] <= MACHINES[target].shared, what
        assert 0 < each["registers"] <= (512 if target == "gfx942" else 255), what
        if each["kernel"] in PRODUCTS:
            assert each["matrix"], what


def test_sm_90_of_all_experiments() -> None:
    found = inspected("--target", "sm_90")
    check_budget(found, "sm_90")
    for each in found:
        if each["kernel"] in PRODUCTS:
            assert each["matrix"].get("wgmma"), (each["kernel"], each["variant"])


@pytest.mark.parametrize(
    ("target", "instruction"), [("sm_80", "mma"), ("sm_100", "tcgen05"), ("gfx942", "mfma")]
)
def test_other_targets(target: str, instruction: str) -> None:
    found = inspected("--target", target, "--experiment", "mnist")
    check_budget(found, target)
    used = [each for each in found if each["kernel"] in PRODUCTS and instruction in each["matrix"]]
    assert len(used) > 10


def test_nonsense_is_told_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastinfogan.kernels.inspect", "--experiment", "mnist"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("inspect: a process under TRITON_INTERPRET=1 cannot compile")
    assert done.stderr.count("\n") == 1
