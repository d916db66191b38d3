"""The GPU report without a GPU: what kills a stage costs an item, and the page shows everything."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.accuracy import MismatchError
from bench.gpu_report import machine, passes, report, tuning
from bench.gpu_report.context import Context, FailedError
from bench.gpu_report.journal import Entries, Item, Journal
from bench.gpu_report.report import GpuReport, StageResult
from bench.gpu_report.stages import CLOSING, PICTURE, STAGES, Stage, allowance
from bench.gpu_report.supervise import LOST_DEVICE, STARTS, Ended, Supervisor
from fastinfogan.errors import InputError
from fastinfogan_kernels.conv_block.launch_table import Choice, GemmTile, read_table

ROOT = Path(__file__).parents[2]

STAGE = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
from bench.gpu_report.journal import Item, Journal
journal = Journal(Path(sys.argv[1]))
known = {{item.name for item in journal.read().items}}
print("started", flush=True)
for name in sys.argv[2:]:
    if name in known:
        continue
    journal.begin(name, 1.0 if name == "hang" else 30.0)
    if name == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        Path(f"{{sys.argv[1]}}.child").write_text(str(child.pid))
        time.sleep(300)
    if name == "sleep":
        time.sleep(300)
    if name == "segfault":
        print("Fatal Python error: planted", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "lost":
        journal.add(Item(name, "failed", 0.1, {{}}, "an illegal memory access"))
        os._exit({LOST_DEVICE})
    if name == "torn":
        with journal.file.open("a") as opened:
            opened.write('{{"item": {{"name": "torn", "sta')
        os._exit(1)
    if name == "garbage":
        with journal.file.open("a") as opened:
            opened.write('no JSON\\n[1, 2]\\n{{"item": {{"name": 3}}}}\\n\\x00\\n')
    journal.add(Item(name, "ok", 0.1, {{"n": 1}}))
"""


def supervisor(folder: Path, *command: str) -> Supervisor:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    journal = Journal(folder / "stage.jsonl")
    return Supervisor(
        lambda _: [sys.executable, *command], journal, folder / "log", environment, ROOT
    )


def supervised(folder: Path, *items: str, seconds: float = 120.0) -> tuple[Ended, Entries]:
    script = folder / "stage.py"
    script.write_text(STAGE)
    ended = supervisor(folder, str(script), str(folder / "stage.jsonl"), *items).run(seconds)
    found = Journal(folder / "stage.jsonl").read()
    assert len(found.items) == len({item.name for item in found.items})
    return ended, found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def result(ended: Ended, folder: Path) -> StageResult:
    return StageResult.of(STAGES[0], 30.0, [ended], [Journal(folder / "stage.jsonl")])


def test_whatever_kills_a_stage_costs_one_item(tmp_path: Path) -> None:
    items = ["one", "hang", "two", "segfault", "garbage", "lost", "torn", "three"]
    ended, found = supervised(tmp_path, *items)
    rows = {item.name: item for item in found.items}
    assert list(rows) == items
    assert (ended.state, ended.starts, ended.error) == ("ok", 5, "")
    assert {n: r.state for n, r in rows.items() if r.state != "ok"} == {
        "hang": "hung", "segfault": "crashed", "lost": "failed", "torn": "crashed",
    }  # fmt: skip
    assert rows["hang"].error == "stopped after 1 s"
    assert rows["segfault"].error == "Fatal Python error: planted"
    assert found.garbage == 5  # four lines, and the torn one
    assert result(ended, tmp_path).state == "failed"
    # What it started is gone as well.
    pid = int((tmp_path / "stage.jsonl.child").read_text())
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_a_stage_whose_time_is_up_keeps_its_items(tmp_path: Path) -> None:
    Journal(tmp_path / "stage.jsonl").add(Item("one", "ok"))
    ended, found = supervised(tmp_path, "one", "sleep", "two", seconds=4.0)
    assert ended.state == "out of time"
    assert [(item.name, item.state) for item in found.items] == [
        ("one", "ok"), ("sleep", "not reached"),
    ]  # fmt: skip
    assert "the stage's time was up" in found.items[-1].error
    stage = result(ended, tmp_path)
    assert (stage.state, stage.error, stage.failures) == ("out of time", "", [])


def test_a_stage_that_cannot_start_is_not_tried_again(tmp_path: Path) -> None:
    ended = supervisor(tmp_path, "-c", "import no_such_module").run(60.0)
    assert (ended.state, ended.starts) == ("crashed", 1)
    assert ended.error == "ModuleNotFoundError: No module named 'no_such_module'"
    assert result(ended, tmp_path).state == "crashed"
    assert result(Ended("ok", 1.0, 1), tmp_path).error == "it wrote nothing"


def test_a_stage_that_dies_at_every_item_is_given_up(tmp_path: Path) -> None:
    code = "from pathlib import Path; from bench.gpu_report.journal import Journal; import os; "
    code += f"j = Journal(Path({str(tmp_path / 'stage.jsonl')!r})); "
    code += "j.begin(str(len(j.read().items)), 30); os._exit(1)"
    ended = supervisor(tmp_path, "-c", code).run(120.0)
    assert (ended.state, ended.starts) == ("crashed", STARTS)
    assert len(Journal(tmp_path / "stage.jsonl").read().items) == STARTS


TESTS = """
import os
import pytest

@pytest.mark.parametrize("n", range(3))
def test_good(n): pass

def test_bad(): assert 1 == 2, "not equal"

def test_skipped(): pytest.skip("no such thing here")

def test_crash(): os.abort()

def test_last(): pass
"""


def test_a_suite_goes_on_behind_a_test_that_crashes(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_chain_broken.py").write_text("import no_such_module\n")
    journals = [Journal(tmp_path / f"{part}.jsonl") for part in range(2)]
    ended = []
    for part, journal in enumerate(journals):
        environment = {
            **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
            "GPU_REPORT_JOURNAL": str(journal.file), "GPU_REPORT_PART": f"{part}/2",
        }  # fmt: skip
        command = [
            sys.executable, "-m", "pytest", "-p", "bench.gpu_report.pytest_plugin", "-q",
            "-p", "no:cacheprovider", "--continue-on-collection-errors", "-c", os.devnull,
            "--rootdir", str(tmp_path), str(tmp_path),
        ]  # fmt: skip
        run = Supervisor(lambda _, c=command: c, journal, tmp_path / "log", environment, ROOT)  # type: ignore[misc]
        ended.append(run.run(120.0))
    stage = StageResult.of(STAGES[2], 120.0, ended, journals)
    assert [each.state for each in ended] == ["ok", "ok"], (tmp_path / "log").read_text()
    found = {item.name.rpartition("::")[2] or item.name: item for item in stage.items}
    assert {n: i.state for n, i in found.items() if i.state != "ok"} == {
        "collecting test_chain_broken.py": "failed", "test_bad": "failed",
        "test_skipped": "not reached", "test_crash": "crashed",
    }  # fmt: skip
    assert len(found) == len(stage.items) == 8
    assert "no_such_module" in found["collecting test_chain_broken.py"].error
    assert "not equal" in found["test_bad"].error
    assert "no such thing here" in found["test_skipped"].error
    assert stage.starts == 3
    assert stage.state == "failed"


shares = st.builds(Stage, st.just("s"), st.just(""), st.floats(1, 100), st.just(""), st.just(()),
                   st.floats(1, 20), st.none() | st.floats(1, 100))  # fmt: skip


@given(st.lists(shares, min_size=1, max_size=12), st.floats(0, 1000), st.floats(0, 1))
def test_stages_together_take_no_more_than_there_is(
    coming: list[Stage], total: float, used: float
) -> None:
    left = total
    for i in range(len(coming)):
        limit = allowance(left, coming[i:])
        assert limit == 0 or limit >= min(coming[i].least, coming[i].most or coming[i].least)
        assert coming[i].most is None or limit <= coming[i].most
        left -= limit * used
    assert left >= min(total, CLOSING)


def test_time_that_is_not_used_goes_to_those_behind() -> None:
    coming = [Stage(name, "", weight, "") for name, weight in (("a", 1), ("b", 1), ("c", 2))]
    whole = 400 + CLOSING + 3
    assert allowance(whole, coming) == pytest.approx(100)
    assert allowance(whole - 100, coming[1:]) == pytest.approx(100)
    assert allowance(whole - 20, coming[1:]) == pytest.approx(380 / 3)
    assert allowance(CLOSING + 3 + 4, coming) == 0
    assert allowance(CLOSING + 3 + 6, coming) == 5


def test_an_items_error_is_in_the_journal(tmp_path: Path) -> None:
    context = Context("s", tmp_path, tmp_path, 60.0, dry=True)

    def raises(error: BaseException) -> Callable[[], dict[str, Any]]:
        def item() -> dict[str, Any]:
            raise error

        return item

    assert context.run("good", lambda: {"n": float("nan"), "t": torch.ones(2)}) is not None
    assert context.run("wrong", raises(FailedError("off by 3", {"error": 3.0}))) is None
    context.run("mismatch", raises(MismatchError("y: off by 4")))
    context.run("bug", raises(ZeroDivisionError("by nothing\nmore")))
    context.run("large", raises(torch.OutOfMemoryError("tried to allocate 80 GiB")))
    context.run("good", raises(AssertionError("it has been run")))
    context.skip("later", "no time")
    context.run("long", dict, least=100.0)
    found = {item.name: item for item in context.journal.read().items}
    assert found["good"].numbers == {"n": "nan", "t": [1.0, 1.0]}
    assert (found["wrong"].state, found["wrong"].error) == ("failed", "off by 3")
    assert found["wrong"].numbers == {"error": 3.0}
    assert found["mismatch"].error == "y: off by 4"
    assert found["bug"].error == "ZeroDivisionError: by nothing"
    assert found["large"].state == "no memory"
    assert found["later"].state == found["long"].state == "not reached"
    assert "s are left" in found["long"].error
    assert context.ok == {"good"}
    # Another process of the stage goes on behind, and one without time begins nothing.
    late = Context("s", tmp_path, tmp_path, 0.5, dry=True)
    assert late.run("good", dict) is None
    assert late.run("new", dict) is None
    assert late.journal.read().items[-1].state == "not reached"


def test_launch_tables_are_merged(tmp_path: Path) -> None:
    tile = GemmTile(64, 128, 64, 8, 3, 1, 255)
    present = {name: {"candidate": "aten"} for name in ("kept", "worse now", "better now")}
    tuned = {"worse now": None, "better now": asdict(Choice("gemm", tile)),
             "new": asdict(Choice("aten")), "as the rule": None}  # fmt: skip
    merged = tuning.merged(present, tuned)
    assert list(merged) == ["better now", "kept", "new"]
    file = tmp_path / "table.json"
    file.write_text(json.dumps(merged))
    assert read_table(file) == {
        "kept": Choice("aten"), "new": Choice("aten"), "better now": Choice("gemm", tile),
    }  # fmt: skip


def test_tiles_around_the_rules() -> None:
    call = passes.Call("mnist", "forward", "cpu|key", False, 1 << 30, 128, dict)
    rule = GemmTile(64, 128, 64, 8, 3, 1, 255)
    choices = passes.choices_beside(call, rule, Choice("gemm", GemmTile(32, 32, 32)))
    assert choices[:2] == [Choice("gemm", GemmTile(32, 32, 32)), Choice("aten")]
    tiles = [choice.tile for choice in choices[2:]]
    assert 4 <= len(tiles) == len(set(tiles))
    assert rule not in tiles
    assert all(tile and tile.n <= 128 and tile.registers == 255 for tile in tiles)
    flat = passes.Call("mnist", "forward", "cpu|key", True, 1 << 30, 1024, dict)
    found = passes.choices_beside(flat, rule, None)
    assert Choice("aten") not in found  # which computes no fully connected layer
    assert any(choice.tile and choice.tile.splits == 2 for choice in found)


def test_what_workers_compile_on_a_gpu_can_be_recorded() -> None:
    """Workers of a GPU's stages record on tensors without storage, on any machine."""
    for _, launches in islice(machine.waves(dry=False), 2):
        assert len({launch.name for launch in launches}) > 8
    tiles = list(tuning.tile_waves())
    assert len(tiles) > 100
    names = {launch.name for _, launches in tiles for launch in launches}
    assert {"implicit_gemm_kernel", "weight_gradient_kernel"} <= names


def test_a_tile_that_gives_other_numbers_cannot_win() -> None:
    right = {"y": torch.randn(64, 64).bfloat16()}
    assert tuning.difference({"y": right["y"] * (1 + torch.finfo(torch.bfloat16).eps)}, right) == ""
    assert "off by" in tuning.difference({"y": right["y"] * 1.05}, right)
    assert "not finite" in tuning.difference({"y": right["y"] * float("inf")}, right)
    assert "missing" in tuning.difference({}, right)


def made_up_report() -> GpuReport:
    """As of a GPU: items of some stages."""
    times = {"us, fastinfogan": 300.0, "us, eager": 2000.0, "us, best": 900.0, "of best": 0.33,
             "experiment": "mnist", "batch": 128}  # fmt: skip
    numbers: dict[str, list[dict[str, Any]]] = {
        "environment": [{"name": "a GPU"}, {"missing": "tyro"}],
        "iteration": [times, {**times, "us, compiled": 700.0, "of compiled": 0.43}],
        "tuning": [{"pass": "forward", "us, the rule": 10.0, "of the rule": 0.8, "entry": {}}],
    }
    facts: dict[str, dict[str, Any]] = {
        "environment": {"missing": {"tyro": "the command line"}},
        "mnist": {"curve": [{"iteration": 1, "d_loss": 1.0}]},
        "profile": {"table of mnist, as trained": [{"name": "gemm<64>", "count": 3, "us": 2.5}]},
    }
    results = []
    for stage in STAGES:
        items = [Item(f"{i}", "ok", 1.0, n) for i, n in enumerate(numbers.get(stage.name, []))]
        fact = facts.get(stage.name, {})
        results.append(StageResult(stage.name, stage.title, "ok", 1.0, 2.0, 1, items, fact))
    made = GpuReport({"minutes": 8.0, "dry_run": False}, results)
    wrong = Item("test_chains.py::test_fp32[<1>]", "failed", 1.0, {}, "off by <1>")
    made.stage("correctness").items = [wrong]
    made.stage("capture").error, made.stage("capture").state = "Segmentation fault", "crashed"
    return made


def test_the_page_and_the_table(tmp_path: Path) -> None:
    made = made_up_report()
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / PICTURE)
    made.write(tmp_path)
    made.write_page(tmp_path)
    text = (tmp_path / report.PAGE).read_text()
    for stage in STAGES:
        assert f"## {stage.title}\n" in text
    assert "| off by \\<1> |" in text
    assert f"![Generated images]({PICTURE})" in text
    assert "Not installed here: tyro, for the command line." in text
    assert "| 0 | ok | 1 | 300 | 2000 | 900 | 0.33 | mnist | 128 |  |  |\n| 1 | ok | 1 |" in text
    assert "| gemm\\<64> | 3 | 2.5 |" in text
    assert "d_loss" not in text
    printed = "\n".join(made.table(STAGES))
    assert "experiment mnist, us, fastinfogan 300.0, of best 0.33" in printed
    assert "correctness: test_chains.py::test_fp32[<1>]: failed: off by <1>" in printed
    assert "capture: crashed: Segmentation fault" in printed
    assert max(map(len, printed.splitlines())) <= 120
    assert "\n".join(GpuReport.read(tmp_path / report.NAME).table(STAGES)) == printed
    (tmp_path / report.NAME).write_text("{}")
    with pytest.raises(InputError, match="not a GPU report"):
        GpuReport.read(tmp_path / report.NAME)


@pytest.mark.parametrize("stage", [s for s in STAGES if s.run], ids=lambda s: s.name)
def test_every_stage_has_a_function(stage: Stage) -> None:
    module, _, function = stage.run.partition(":")
    assert callable(getattr(importlib.import_module(f"bench.gpu_report.{module}"), function))
