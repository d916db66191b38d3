"""The gate as a whole: a small repository, two commits, worker processes; something planted."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.compare import __main__ as program
from bench.compare.__main__ import main
from bench.compare.side import LostError, Side
from bench.compare.tree import git
from bench.compare.worker import OneTree

TREE = Path(__file__).parents[2]
OP = """
import time

LAUNCHES = 10
SECONDS = 3e-3

def run():
    time.sleep(SECONDS)

def steady():
    time.sleep(2e-3)

def only_before():
    time.sleep(1e-3)

def dies_before():
    import os
    os._exit(3)
"""
CASES = """
from bench.cases import Case, Planned
from fastinfogan import op

NAMES = ("run", "steady", "only_now", "only_before", "dies_before")

def planned(device):
    def plan(name):
        def make(device):
            run = getattr(op, name)
            return Case("ops", name, run, {}, lambda: None)
        return Planned("ops", name, make, short=name in ("run", "steady"))
    return [plan(name) for name in NAMES]
"""
COUNTING = """
from fastinfogan import op

def count_all(only):
    return {"counts": {"launches of run": op.LAUNCHES, "bytes": 7}, "failed": {}}
"""
QUICK = ["--short", "--rounds", "20"]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A package with an operation, our bench/compare, and cases of its own; one commit."""
    root = tmp_path / "repository"
    for name in ("compare", "timing"):
        shutil.copytree(TREE / "bench" / name, root / "bench" / name)
    shutil.copytree(TREE / "bench" / "cases", root / "bench" / "cases", copy_function=only_init)
    write(
        root,
        {
            "bench/__init__.py": "",
            "bench/cases/ops.py": CASES,
            "bench/cases/blocks.py": "def planned(device): return []",
            "bench/cases/iteration.py": "def planned(device): return []",
            "bench/compare/counting.py": COUNTING,
            "fastinfogan/__init__.py": "",
            "fastinfogan/engine/__init__.py": "",
            "fastinfogan/engine/precision.py": "ComputedIn = str\n",
            "fastinfogan/op.py": OP,
            ".gitignore": "__pycache__\n",
        },
    )
    git(root, "init", "--quiet", "--initial-branch", "main")
    commit(root)
    return root


def only_init(source: str, target: str) -> None:
    if source.endswith("__init__.py"):
        shutil.copyfile(source, target)


def commit(root: Path) -> None:
    git(root, "add", "--all")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    git(root, *who, "commit", "--quiet", "--allow-empty", "--message", "a change")


def change(root: Path, old: str, new: str) -> None:
    file = root / "fastinfogan" / "op.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def nothing_is_left(root: Path) -> bool:
    return len(git(root, "worktree", "list").splitlines()) == 1


def test_a_planted_slowdown_and_a_planted_launch_shut_the_gate(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(repository, "SECONDS = 3e-3", "SECONDS = 3e-3 * 1.3")
    change(repository, "LAUNCHES = 10", "LAUNCHES = 11")
    assert main(["HEAD", *QUICK, "--json", "told.json"], repository) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "with uncommitted changes: fastinfogan/op.py" in lines[0]
    assert any(line.endswith("launches of run  GREW") for line in lines)
    (regressed,) = [line for line in lines if "REGRESSION, then 1." in line]
    assert "ops/run" in regressed
    assert lines[-1].startswith("REGRESSION in launches of run, ops/run; 1 counts grew")
    told = json.loads(Path("told.json").read_text())
    assert told["failures"] == ["launches of run", "ops/run"]
    assert told["exit_code"] == 1
    outcomes = {each["key"]: each["outcome"] for each in told["times"]}
    assert outcomes == {"ops/run": "regression", "ops/steady": "same"}
    assert nothing_is_left(repository)


def test_the_same_code_passes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(repository)
    assert main([*QUICK], repository) == 0  # on main: against its parent
    lines = capsys.readouterr().out.splitlines()
    assert "uncommitted" not in lines[0]
    assert lines[-1] == "fine: no count grew; 2 cases timed, 0 faster"
    assert nothing_is_left(repository)


def test_cases_that_a_side_cannot_do(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Base's are not comparable, also if its process dies; head's failure is one."""
    change(repository, "def only_before", "def only_now")
    change(repository, "import os\n    os._exit(3)", "time.sleep(1e-3)")
    arguments = ["HEAD", "--times-only", "-k", "only", "-k", "DIES", "--rounds", "20"]
    assert main(arguments, repository) == 1
    out = capsys.readouterr().out
    for told in (
        "ops/only_now: not comparable (base: AttributeError: module 'fastinfogan.op' has no",
        "ops/only_before: FAILED (head: AttributeError: module 'fastinfogan.op' has no attribute",
        "ops/dies_before: not comparable (base died of prepare, exit code 3: no word)",
    ):
        assert told in out
    assert out.splitlines()[-1].startswith("REGRESSION in ops/only_before;")


def test_growth_may_be_allowed_or_only_warned_of(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(repository, "LAUNCHES = 10", "LAUNCHES = 11")
    only = ["HEAD", "--counts-only"]
    assert main([*only, "--allow", "launches*", "--allow", "bytes"], repository) == 0
    out = capsys.readouterr().out
    assert "launches of run  allowed: --allow" in out
    assert "permission not needed: 'bytes' (--allow)" in out
    assert main([*only, "--warn-only"], repository) == 0
    assert "REGRESSION in launches of run" in capsys.readouterr().out


def test_an_interrupt_leaves_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Side] = []
    start = Side.start

    def noted(self: Side) -> None:
        start(self)
        started.append(self)

    def interrupt(what: str) -> None:
        if what.startswith("ops/"):
            assert all(side._process is not None for side in started)
            raise KeyboardInterrupt

    monkeypatch.setattr(Side, "start", noted)
    monkeypatch.setattr(program, "_progress", interrupt)
    assert main(["HEAD", "--times-only", *QUICK], repository) == 130
    assert capsys.readouterr().err == "bench.compare: interrupted\n"
    assert len(started) == 2
    assert all(side._process is None for side in started)
    assert nothing_is_left(repository)


def test_a_worker_that_hangs_or_is_of_another_tree_is_told(repository: Path) -> None:
    with Side("head", repository, None, repository) as side:
        told = side.ask("hello", 60)
        assert told["package"] == str(repository / "fastinfogan" / "__init__.py")
        assert told["native"] is None
        write(repository, {"fastinfogan/slow.py": "import time\ntime.sleep(60)\n"})
        with pytest.raises(LostError, match=r"head did not plan in 0\.5 s"):
            side.ask("plan", 0.5, modules=["fastinfogan.slow"])
    native = getattr(sys.modules.get("fastinfogan_kernels._native"), "__file__", None)
    assert OneTree(TREE, native and Path(native)).strangers() == []
    assert len(OneTree(repository, None).strangers()) > 10


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no-such"], "no commit 'no-such' here; fetch it, or name another"),
        (["--rounds", "19"], "--rounds 19: a verdict takes 20 at least"),
        ([], "has no parent here: the first commit, or a clone without history; name a base"),
    ],
)
def test_bad_input_is_one_line(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(arguments, repository) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert nothing_is_left(repository)


def test_without_history_a_warning_is_all(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As CI's clone may be."""
    assert main(["--times-only", "--warn-only"], repository) == 0
    assert "has no parent here" in capsys.readouterr().err
    assert main(["--warn-only"], tmp_path) == 0
    assert "is not a git repository" in capsys.readouterr().err
    assert main([], tmp_path) == 2
    (repository / "inner").mkdir()
    assert main([], repository / "inner") == 2
    assert "is no repository of its own, but a folder of" in capsys.readouterr().err


def without_git(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("PATH", str(root))


def with_a_submodule(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Which has moved on from its commit."""
    inner = root / "part"
    inner.mkdir()
    git(inner, "init", "--quiet")
    commit(inner)
    git(root, "-c", "advice.addEmbeddedRepo=false", "add", "part")
    commit(root)
    commit(inner)


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (without_git, "git is not installed; it is needed to get at another commit"),
        (with_a_submodule, "the submodule part is not as its commit says; git submodule update"),
    ],
)
def test_what_git_cannot_do_is_one_line(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plant: Callable[[pytest.MonkeyPatch, Path], None],
    told: str,
) -> None:
    plant(monkeypatch, repository)
    assert main(["HEAD"], repository) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_the_command_of_the_readme() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "bench-compare", "BASE=v1"],
        cwd=TREE,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},  # run by make
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1].split() == [
        ".venv/bin/python", "-m", "bench.compare", "v1",
    ]  # fmt: skip
