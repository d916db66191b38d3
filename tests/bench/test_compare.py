"""`bench.compare`: noise alone is no regression; a planted slowdown and a grown count are."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.compare.__main__ import main
from bench.compare.paired import FEWEST, ROUNDS, compare_times
from bench.compare.times import CaseError, WorkerError, WorkerProcess, time_all
from bench.compare.trees import git, resolve
from bench.counting import committed, saved
from fastinfogan.engine import Iteration
from fastinfogan.errors import InputError
from fastinfogan_kernels.conv_block import triton_backend

TREE = Path(__file__).parents[2]
Times = NDArray[np.float64]
Noise = Callable[[np.random.Generator], Times]


def wandering(random: np.random.Generator, spread: float, memory: float) -> Times:
    """A machine whose speed changes by little each time."""
    steps = random.normal(0, spread * (1 - memory**2) ** 0.5, 2 * ROUNDS)
    found = np.empty(2 * ROUNDS)
    found[0] = random.normal(0, spread)
    for i in range(1, 2 * ROUNDS):
        found[i] = memory * found[i - 1] + steps[i]
    return np.exp(found + random.normal(0, 0.01, 2 * ROUNDS))


QUIET: dict[str, Noise] = {
    "gaussian": lambda random: np.exp(random.normal(0, 0.02, 2 * ROUNDS)),
    "drift": lambda random: (
        np.linspace(1, random.uniform(0.5, 2), 2 * ROUNDS)
        * np.exp(random.normal(0, 0.02, 2 * ROUNDS))
    ),
    "spikes": lambda random: np.where(
        random.random(2 * ROUNDS) < 0.02, 5.0, np.exp(random.normal(0, 0.01, 2 * ROUNDS))
    ),
    "phases": lambda random: (
        np.where(np.repeat(random.random(2 * ROUNDS // 8) < 0.5, 8), 1.5, 1.0)
        * np.exp(random.normal(0, 0.02, 2 * ROUNDS))
    ),
}
"""In which a slowdown of 10 % must be found."""
LOUD: dict[str, Noise] = {
    "two speeds": lambda random: np.where(random.random(2 * ROUNDS) < 0.5, 1.0, 1.3),
    "wandering": lambda random: wandering(random, 0.2, 0.99),
    "wandering fast": lambda random: wandering(random, 0.2, 0.9),
}
"""In which it need not be; but noise alone is no regression."""


def regressions(noise: Noise, slower: float, trials: int, *, bursts: bool = False) -> int:
    """Count the comparisons, each of two sets of rounds at most, that end in a regression."""
    random = np.random.default_rng(1)

    def verdict() -> str:
        taken = noise(random)
        i = np.arange(ROUNDS)
        first = 2 * i + i % 2  # the order alternates
        base, head = taken[first], taken[4 * i + 1 - first] * slower
        if bursts:  # of up to half of the rounds, in a row, on one side
            start, length = random.integers(0, ROUNDS // 2, 2)
            (base, head)[random.integers(2)][start : start + length] *= random.uniform(1.1, 3)
        return compare_times(base.tolist(), head.tolist()).verdict

    return sum(verdict() == "slower" and verdict() == "slower" for _ in range(trials))


@pytest.mark.parametrize("bursts", [False, True], ids=["", "bursts"])
@pytest.mark.parametrize("noise", {**QUIET, **LOUD})
def test_noise_alone_is_no_regression(noise: str, bursts: bool) -> None:
    assert regressions({**QUIET, **LOUD}[noise], 1.0, 500, bursts=bursts) == 0


@pytest.mark.parametrize("noise", QUIET)
def test_ten_percent_is_found_and_three_is_not(noise: str) -> None:
    assert regressions(QUIET[noise], 1.10, 100) >= 95
    assert regressions(QUIET[noise], 1.03, 200) == 0


def test_the_sign_test() -> None:
    assert compare_times([1.0] * FEWEST, [2.0] * FEWEST).verdict == "slower"
    assert compare_times([2.0] * FEWEST, [1.0] * FEWEST).verdict == "faster"
    assert compare_times([1.0] * FEWEST, [1.04] * FEWEST).verdict == "no difference"
    assert compare_times([1.0] * (FEWEST - 1), [2.0] * (FEWEST - 1)).verdict == "no difference"
    # 23 of 32 rounds are not enough, 24 are.
    for slow, verdict in ((23, "no difference"), (24, "slower")):
        head = [1.2] * slow + [1.0] * (32 - slow)
        assert compare_times([1.0] * 32, head).verdict == verdict


def in_g_step(extra: Callable[[Iteration], object]) -> Callable[[Iteration], Any]:
    step = Iteration.g_step

    def planted(self: Iteration) -> Any:  # noqa: ANN401
        found = step(self)
        extra(self)
        return found

    return planted


@pytest.mark.parametrize(
    ("extra", "grown"),
    [
        (lambda self: self.non_finite_rows.add_(0), "launches of mnist in bf16"),
        (lambda self: torch.empty(1), "allocations of mnist in bf16"),
        (lambda self: float(self.non_finite_rows), "host waits of mnist in bf16"),
    ],
    ids=["launch", "allocation", "wait"],
)
def test_something_planted_in_the_iteration_is_counted(
    monkeypatch: pytest.MonkeyPatch, extra: Callable[[Iteration], object], grown: str
) -> None:
    def of_mnist() -> dict[str, int]:
        return dict(itertools.islice(committed._iterations(), 5))

    before = of_mnist()
    monkeypatch.setattr(Iteration, "g_step", in_g_step(extra))
    comparison = committed.Comparison.of(before, of_mnist())
    assert grown in comparison.grown
    assert not any("FLOPs" in name for name in comparison.grown)


def test_a_tensor_saved_too_much_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_mnist() -> dict[str, int]:
        return dict(itertools.islice(saved.chains(), 5))

    before, forward = by_mnist(), triton_backend.forward

    def planted(*arguments: Any) -> Any:  # noqa: ANN401
        out, tensors = forward(*arguments)
        return out, [*tensors, torch.empty_like(out)]

    monkeypatch.setattr(triton_backend, "forward", planted)
    grown = committed.Comparison.of(before, by_mnist()).grown
    assert len(grown) == 5
    assert all(name.startswith("bytes saved by mnist's ") for name in grown)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Synthetic counts of the tree."""
    found = {"launches": 58, "bytes": 1000, "registers of a for sm_90": 98}
    monkeypatch.setattr(committed, "count_all", lambda: found)
    return found


def test_counts_against_the_committed_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, counted: dict[str, int]
) -> None:
    file = tmp_path / "counts.json"
    arguments = ["--file", str(file)]
    assert committed.main(arguments) == 2
    assert "No such file" in capsys.readouterr().err
    assert committed.main([*arguments, "--write"]) == 0
    assert committed.main(arguments) == 0
    counted |= {"launches": 57, "new": 1}
    del counted["bytes"]
    capsys.readouterr()
    assert committed.main(arguments) == 0
    out = capsys.readouterr().out
    assert "58             57  launches\n" in out
    assert "1 counts only before, bytes for one\n1 counts only now, new for one\n" in out
    assert "1 counts are equal, 0 grew, 1 fell" in out
    assert committed.COMMAND in out
    counted["registers of a for sm_90"] = 99
    assert committed.main(arguments) == 1
    assert "98             99  registers of a for sm_90  GREW" in capsys.readouterr().out
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "versions": {"torch": "2.13.0", "triton": "3.0"}}))
    assert committed.main(arguments) == 0
    assert "registers are not compared: they were counted with" in capsys.readouterr().out
    file.write_text("[]")
    assert committed.main(arguments) == 2


def test_the_committed_file_holds_counts() -> None:
    comparison = committed.compare_with(committed.FILE.read_text(), {})
    assert {"launches of mnist in bf16", "FLOPs of faces in fp32"} <= {*comparison.only_before}


OP = """
import time

def run():
    time.sleep(3e-3)

def steady():
    time.sleep(2e-3)

def only_before():
    time.sleep(1e-3)

def dies_before():
    import os
    os._exit(3)
"""
CASES = """
from types import SimpleNamespace
from fastinfogan import op

def planned(device):
    def plan(name):
        def make(device):
            return SimpleNamespace(run=getattr(op, name), timed="alone", units=1)
        return SimpleNamespace(group="ops", name=name, make=make, short=name in ("run", "steady"))
    return [plan(name) for name in ("run", "steady", "only_now", "only_before", "dies_before")]
"""
QUICK = ["--rounds", "16"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A package with an operation, bench/compare, and cases; one commit."""
    root = tmp_path / "repository"
    for name in ("compare", "timing"):
        shutil.copytree(TREE / "bench" / name, root / "bench" / name)
    files = {
        "bench/__init__.py": "",
        "bench/cases/__init__.py": "",
        "bench/cases/ops.py": CASES,
        "bench/cases/blocks.py": "def planned(device): return []",
        "bench/cases/iteration.py": "def planned(device): return []",
        "fastinfogan/__init__.py": "",
        "fastinfogan/op.py": OP,
        "kernels/fastinfogan_kernels/__init__.py": "",
        ".gitignore": "__pycache__\n*.so\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet", "--initial-branch", "main")
    commit(root)
    return root


def commit(root: Path) -> None:
    git(root, "add", "--all")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    git(root, *who, "commit", "--quiet", "--allow-empty", "--message", "a change")


def change(root: Path, old: str, new: str) -> None:
    file = root / "fastinfogan" / "op.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.slow
def test_a_planted_slowdown_is_a_regression(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two trees, two processes each; base's missing case is not comparable, head's has failed."""
    change(repository, "time.sleep(3e-3)", "time.sleep(6e-3)")
    change(repository, "def only_before", "def only_now")
    cases = ["-k", "run", "-k", "STEADY", "-k", "only"]
    assert main(["HEAD", *QUICK, *cases, "--json", "found.json"], repository) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith("with uncommitted changes")
    (regressed,) = [line for line in out.splitlines() if ": REGRESSION, then " in line]
    assert "ops/run" in regressed
    assert "ops/only_now: not comparable (base: AttributeError: module 'fastinfogan.op'" in out
    assert "ops/only_before: failed (head: AttributeError: module 'fastinfogan.op'" in out
    assert out.endswith("REGRESSION in ops/run, ops/only_before\n")
    found = json.loads(Path("found.json").read_text())
    assert found["failures"] == ["ops/run", "ops/only_before"]
    assert found["times"][1]["outcome"] == "no difference"
    assert len(git(repository, "worktree", "list").splitlines()) == 1


class ScriptedWorker(WorkerProcess):
    """Answers without a process; head's cases take as long as their names say."""

    started = 0

    def __init__(self, name: str, tree: Path, root: Path) -> None:
        self.name = name
        self._case = ""
        self._process_number = ScriptedWorker.started // 2
        ScriptedWorker.started += 1

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, do: str, **arguments: str) -> dict[str, Any]:
        if do == "plan":
            return {"short": {"slower": True, "same": True, "slower once": True, "long": False}}
        if do == "prepare":
            self._case = arguments["case"]
        slower = self._case == "slower" or (
            self._case == "slower once" and self._process_number == 0
        )
        if self._case == "long":
            return {"seconds": 2.0}
        return {"seconds": 0.6 if slower and self.name == "head" else 0.5}


def test_a_slower_case_is_timed_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.compare.times.WorkerProcess", ScriptedWorker)
    monkeypatch.setattr(ScriptedWorker, "started", 0)
    found = time_all(TREE, TREE, 16, lambda key, short: True, slow=False)
    assert {each.key: each.outcome for each in found} == {
        "slower": "regression",
        "same": "no difference",
        "slower once": "not confirmed",
        "long": "left out",
    }
    assert "1.200 (1.200 to 1.200)  slower: REGRESSION, then 1.200" in str(found[0])
    (short,) = time_all(TREE, TREE, 16, lambda key, short: key == "same", slow=False)
    assert short.base == short.head == 0.5


def test_an_interrupt_removes_the_worktree(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(tree: Path, *_: Any, **__: Any) -> None:  # noqa: ANN401
        assert (tree / "fastinfogan" / "op.py").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.compare.__main__.time_all", interrupted)
    assert main(["HEAD", *QUICK], repository) == 130
    assert capsys.readouterr().err == "bench.compare: interrupted\n"
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_the_default_base(repository: Path) -> None:
    """On main the parent; on a branch where it left main."""
    first = git(repository, "rev-parse", "HEAD")
    commit(repository)
    assert resolve(None, repository) == first
    second = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "--quiet", "-b", "branch")
    commit(repository)
    assert resolve(None, repository) == second


def test_a_worker_that_dies_is_reported(repository: Path) -> None:
    with WorkerProcess("base", repository, repository) as worker:
        assert worker.ask("plan")["short"]["ops/run"]
        with pytest.raises(WorkerError, match="base ended with code 3"):
            worker.ask("prepare", case="ops/dies_before")
    with (
        WorkerProcess("base", TREE / "tests", repository) as worker,
        pytest.raises(CaseError, match=r"__init__\.py is not of"),
    ):
        worker.ask("plan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such"], "git rev-parse: fatal: Needed a single revision"),
        (["--rounds", "7"], "--rounds 7: a test takes 8 at least"),
        ([], "git rev-parse: fatal: Needed a single revision"),
    ],
)
def test_bad_input_is_one_line(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments, repository) == 2
    assert capsys.readouterr().err == f"bench.compare: {message}\n"


def test_without_git_or_a_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="not a git repository"):
        git(tmp_path, "status")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="git is not installed"):
        git(repository, "status")
