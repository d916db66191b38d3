"""The GPU report as it is run from outside: bad input, stopped in the middle, and whole, dry."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu_report.__main__ import CHOSEN, TESTS
from bench.gpu_report.report import GpuReport
from bench.gpu_report.stages import STAGES

ROOT = Path(__file__).parents[2]
MISSING = ("tyro", "tensorboard", "nvidia.dali", "fastinfogan_kernels._native")
HOOK = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in {MISSING}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
NOT_ON_A_CPU = {
    "compiled, mnist, bf16": "in a dry run it takes too long; the engine's tests have it",
    "blocks": "on a CPU they need C++ for CPU tensors, which is not compiled",
}  # fmt: skip


def command(*arguments: str, folder: Path, minutes: float = 0.5) -> Any:  # noqa: ANN401
    hook = folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(HOOK)
    environment = {**os.environ, "PYTHONPATH": str(hook), "CUDA_VISIBLE_DEVICES": ""}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu_report", "--minutes", str(minutes), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line(tmp_path: Path) -> None:
    done = command("--out", str(tmp_path / "out"), folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "gpu_report: torch sees no GPU here; --dry-run does on a CPU what can be done\n"
    )
    assert not (tmp_path / "out").exists()
    done = command("--only", "mnits", folder=tmp_path)
    assert done.returncode == 2
    assert "no stage 'mnits'; there are environment, compile," in done.stderr


def test_a_run_that_is_stopped_keeps_what_it_has(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--dry-run", "--minutes", "5", "--out", str(out), "--only", "environment,compile"]
    with subprocess.Popen(
        [sys.executable, "-m", "bench.gpu_report", *arguments], cwd=ROOT, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("compile"):
                break
        process.terminate()
    assert process.returncode == 128 + 15
    found = GpuReport.read(out / "report.json")
    assert found.stage("environment").state == "ok"
    assert found.stage("compile").state == "stopped"
    assert found.stage("mnist").state == "skipped"
    assert (out / "report.md").exists()
    real = command("--out", str(out), folder=tmp_path)
    assert real.returncode == 2
    assert GpuReport.read(out / "report.json").stage("environment").items


@pytest.mark.slow
def test_a_dry_run_without_the_optional_packages(tmp_path: Path) -> None:
    """Every stage comes to its end, and what a CPU cannot do is named."""
    out = tmp_path / "out"
    done = command("--dry-run", "--out", str(out), folder=tmp_path, minutes=30)
    found = GpuReport.read(out / "report.json")
    assert done.returncode == 0, done.stdout + (out / "log.txt").read_text()[-3000:]
    assert {stage.name: stage.state for stage in found.stages} == {s.name: "ok" for s in STAGES}
    for stage in found.stages:
        assert stage.items, stage.name
        for item in stage.items:
            if item.state != "ok":
                reason = NOT_ON_A_CPU.get(item.name, "Skipped: needs a CUDA device")
                assert item.state == "not reached", item
                assert item.error.startswith(reason), item
    assert set(MISSING) <= {*found.stage("environment").facts["missing"]}
    assert len(found.stage("correctness").items) > 5
    text = (out / "report.md").read_text()
    assert all(stage.title in text for stage in STAGES)
    assert len(list(out.rglob("*"))) <= 8
    assert done.stdout.rstrip().splitlines()[-len(STAGES)].startswith("environment")

    done = command("--dry-run", "--out", str(out), "--only", "environment", folder=tmp_path)
    assert done.returncode == 0
    again = GpuReport.read(out / "report.json")
    assert [len(s.items) for s in again.stages[1:]] == [len(s.items) for s in found.stages[1:]]


def test_the_suite_of_a_gpu_can_be_collected() -> None:
    """Of the kernels' tests all, of the others those that capture."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         *TESTS, "-k", CHOSEN],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if "::" in line]
    assert sum(line.startswith("tests/triton/") for line in found) > 100
    assert sum("captured" in line for line in found) >= 2
