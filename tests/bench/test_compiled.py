"""Every kernel that the experiments launch, compiled ahead of time, within its budget."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.compiled import Share, compile_share, read_lines, record_inputs
from fastinfogan import experiments
from fastinfogan_kernels.runtime.machine import MACHINES
from tests.helpers import ahead

PRODUCTS = {
    "implicit_gemm_kernel",
    "weight_gradient_kernel",
    "image_block_kernel",
    "image_weight_gradient_kernel",
}


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


def check_order(kernel: str, order: str) -> int:
    """Check what the interpreter, one program after another, cannot show of a launch that merges.

    Returns:
        How many arrivals there are; each stands behind a barrier, and partial results are read past
        the first cache after it.
    """
    before, *behind = order.split(" barrier arrival barrier barrier ")
    assert "arrival" not in before, kernel
    assert "merge" not in before, kernel
    for after in behind:
        assert before.split()[-1] == "part", kernel
        assert "arrival" not in after, kernel
        assert after.split()[0] == "part", "the counter is set back"
        assert "merge" in after, kernel
        before = after
    return len(behind)


@pytest.mark.parametrize(
    "names",
    [("mnist",), pytest.param(("svhn", "celeba", "faces", "chairs"), marks=pytest.mark.slow)],
    ids=lambda names: names[0],
)
def test_sm_90_of_the_papers_experiments(names: tuple[str, ...]) -> None:
    found = ahead.run("--target", "sm_90", *(f"--experiment={name}" for name in names))
    check_budget(found, "sm_90")
    around = {"real_images", "draw_codes", "d_head", "q_head", "accumulate", "adam"}
    assert {each["kernel"] for each in found} > {f"{name}_kernel" for name in around}
    arrivals: dict[str, set[int]] = {}
    for each in found:
        if each["kernel"] in PRODUCTS:
            assert each["matrix"].get("wgmma"), (each["kernel"], each["variant"])
        if each["kernel"] in PRODUCTS | {"tile_statistics_kernel", "act_backward_reduce_kernel"}:
            number = check_order(each["kernel"], " ".join(ahead.order(each["assembly"])))
            arrivals.setdefault(each["kernel"], set()).add(number)
    assert arrivals.pop("implicit_gemm_kernel") == {0, 1, 2}
    assert arrivals.pop("weight_gradient_kernel") == {0, 1}
    assert {number for numbers in arrivals.values() for number in numbers} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "instruction"), [("sm_80", "mma"), ("sm_100", "tcgen05"), ("gfx942", "mfma")]
)
def test_other_targets(target: str, instruction: str) -> None:
    found = ahead.run("--target", target, "--experiment", "mnist")
    check_budget(found, target)
    used = [each for each in found if each["kernel"] in PRODUCTS and instruction in each["matrix"]]
    assert len(used) > 10


@pytest.mark.slow
def test_fp32() -> None:
    """Products in IEEE arithmetic, which no matrix instruction has."""
    found = ahead.run("--target", "sm_90", "--experiment", "svhn", "--precision", "fp32")
    check_budget(found, "sm_90", matrix=False)


def test_a_process_that_interprets_is_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.compiled", "--experiment", "mnist"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("compiled: a process under TRITON_INTERPRET=1 cannot compile")
    assert done.stderr.count("\n") == 1


def waves() -> list[tuple[str, list[Any]]]:
    launches = record_inputs(replace(experiments.get("mnist"), batch_size=8))
    return [("inputs", launches), ("again", launches)]


def test_shares_of_the_work(tmp_path: Path) -> None:
    """Each worker compiles its part, each specialization once; one that is late compiles one."""
    shares = [
        Share("sm_90", MACHINES["sm_90"], part, 2, time.time() + wait, tmp_path / str(part))
        for part, wait in ((0, 60.0), (1, -1.0))
    ]
    for share in shares:
        compile_share(waves, share)
    late = read_lines(shares[1:])
    assert len(late) == 1
    found = read_lines(shares)
    assert len(found) > 2
    assert {each["wave"] for each in found} == {"inputs"}
    assert {each["kernel"] for each in found} == {"real_images_kernel", "draw_codes_kernel"}
    assert not any("refused" in each for each in found)
    with shares[0].file.open("a") as file:
        file.write('{"kernel": "cut o')
    assert read_lines(shares) == found
