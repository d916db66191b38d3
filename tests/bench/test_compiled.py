"""Every kernel that the five experiments launch, compiled ahead of time, within its budget."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from fastinfogan_kernels.runtime.machine import MACHINES

PRODUCTS = {
    "implicit_gemm_kernel",
    "weight_gradient_kernel",
    "image_block_kernel",
    "image_weight_gradient_kernel",
}


def inspected(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.compiled", "--json", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def check_budget(found: list[dict[str, Any]], target: str, *, matrix: bool = True) -> None:
    assert {each["kernel"] for each in found} >= PRODUCTS
    for each in found:
        what = (each["kernel"], each["variant"])
        assert each["target"] == target
        assert each["stack"] == 0, what
        assert each["f64"] == 0, what
        assert each["shared"] <= MACHINES[target].shared, what
        assert 0 < each["registers"] <= (512 if target == "gfx942" else 255), what
        if each["kernel"] in PRODUCTS and matrix:
            assert each["matrix"], what


def test_sm_90_of_the_papers_experiments() -> None:
    names = ("mnist", "svhn", "celeba", "faces", "chairs")
    found = inspected("--target", "sm_90", *(f"--experiment={name}" for name in names))
    check_budget(found, "sm_90")
    around = {"real_images", "draw_codes", "d_head", "q_head", "accumulate", "adam"}
    assert {each["kernel"] for each in found} > {f"{name}_kernel" for name in around}
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


def test_fp32() -> None:
    """Products in IEEE arithmetic, which no matrix instruction has."""
    found = inspected("--target", "sm_90", "--experiment", "svhn", "--dtype", "fp32")
    check_budget(found, "sm_90", matrix=False)


ORDER = """
from bench.compiled import compile_launches, walk
parts = walk("mnist")
del parts["around"]  # the objective's and Adam's orders have tests of their own
for launches in parts.values():
    for launch in launches:
        compile_launches([launch], "sm_90")
        kernel = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.parameters)
        kinds = {"st.global": "part", "bar.sync": "barrier"}
        kinds |= {"acq_rel.add": "ticket", "ld.global.cg": "merge"}
        lines = kernel.asm["ptx"].splitlines()
        found = (kind for line in lines for text, kind in kinds.items() if text in line)
        print(launch.name, *found)
"""


def test_tickets_are_taken_behind_a_barrier_and_parts_read_past_the_first_cache() -> None:
    """What the interpreter, one program after another, cannot show of a launch that merges."""
    done = subprocess.run(
        [sys.executable, "-c", ORDER],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    arrival_counters = {}
    for line in done.stdout.splitlines():
        name, _, order = line.partition(" ")
        before, *behind = order.split(" barrier ticket barrier barrier ")
        assert "ticket" not in before, line
        arrival_counters.setdefault(name, set()).add(len(behind))
        written = before
        for after in behind:
            assert written.split()[-1] == "part", line
            assert "ticket" not in after, line
            assert after.split()[0] == "part", "the ticket goes back"
            assert "merge" in after, line
            written = after
        assert "merge" not in before, line
    assert arrival_counters.pop("implicit_gemm_kernel") == {0, 1, 2}
    assert arrival_counters.pop("weight_gradient_kernel") == {0, 1}
    assert {number for numbers in arrival_counters.values() for number in numbers} == {0, 1}


def test_nonsense_is_told_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.compiled", "--experiment", "mnist"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("inspect: a process under TRITON_INTERPRET=1 cannot compile")
    assert done.stderr.count("\n") == 1
