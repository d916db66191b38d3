"""The GPU report without a GPU: what kills a stage costs a row, and a dry run does all the rest."""

import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu_report import lines, page, report, tiles
from bench.gpu_report.budget import CLOSING, Share, allowance
from bench.gpu_report.digits import stand_in
from bench.gpu_report.judge import judge, same_bits
from bench.gpu_report.lines import Line
from bench.gpu_report.png import as_text
from bench.gpu_report.report import Report, StageResult, headline, table
from bench.gpu_report.stage import Context, FailedError
from bench.gpu_report.stages import STAGES
from bench.gpu_report.supervise import LOST_DEVICE, STARTS, Ended, supervise
from fastinfogan.errors import InputError
from fastinfogan_kernels.conv_block.launch_table import Choice, GemmTile, read_table

ROOT = Path(__file__).parents[2]

STAGE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from bench.gpu_report import lines
from bench.gpu_report.lines import Line, Writer
file = Path(sys.argv[1])
known, writer = lines.read(file).known, Writer(file)
print("started", flush=True)
for name in sys.argv[2:]:
    if name in known:
        continue
    writer.begin(name, 1.0 if name == "hang" else 30.0)
    if name == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        Path(f"{file}.child").write_text(str(child.pid))
        time.sleep(300)
    if name == "sleep":
        time.sleep(300)
    if name == "segfault":
        print("Fatal Python error: planted", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "lost":
        writer.row(Line(name, "failed", 0.1, {}, "an illegal memory access"))
        os._exit(75)
    if name == "torn":
        with file.open("a") as opened:
            opened.write('{"row": {"name": "torn", "sta')
        os._exit(1)
    if name == "garbage":
        with file.open("a") as opened:
            opened.write("no JSON\\n[1, 2]\\n{\\"row\\": {\\"name\\": 3}}\\n\\x00\\n")
    writer.row(Line(name, "ok", 0.1, {"n": 1}))
"""


def supervised(folder: Path, *items: str, seconds: float = 60.0) -> tuple[Ended, dict[str, Line]]:
    script, file = folder / "stage.py", folder / "stage.jsonl"
    script.write_text(STAGE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = supervise(
        lambda left: [sys.executable, str(script), str(file), *items],
        file, folder / "log", seconds, environment, ROOT,
    )  # fmt: skip
    found = lines.read(file)
    assert len(found.lines) == len(found.known)
    return ended, {line.name: line for line in found.lines}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_whatever_kills_a_stage_costs_one_row(tmp_path: Path) -> None:
    items = ["one", "hang", "two", "segfault", "garbage", "lost", "torn", "three"]
    ended, rows = supervised(tmp_path, *items)
    assert list(rows) == items
    assert (ended.state, ended.starts, ended.error) == ("ok", 5, "")
    assert {n: r.state for n, r in rows.items() if r.state != "ok"} == {
        "hang": "hung", "segfault": "crashed", "lost": "failed", "torn": "crashed",
    }  # fmt: skip
    assert rows["hang"].error == "stopped after 1 s"
    assert rows["segfault"].error == "Fatal Python error: planted"
    found = lines.read(tmp_path / "stage.jsonl")
    assert found.garbage == 5  # four lines, and the torn one
    # What it started is gone as well.
    pid = int((tmp_path / "stage.jsonl.child").read_text())
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_a_stage_whose_time_is_up_keeps_its_rows(tmp_path: Path) -> None:
    ended, rows = supervised(tmp_path, "one", "sleep", "two", seconds=1.5)
    assert ended.state == "out of time"
    assert ended.seconds < 4
    assert [(n, r.state) for n, r in rows.items()] == [("one", "ok"), ("sleep", "not reached")]
    found = StageResult.of("mnist", "MNIST", 1.5, ended, tmp_path / "stage.jsonl")
    assert (found.state, found.error, found.failures) == ("out of time", "", [])


def test_a_stage_that_cannot_start_is_told_and_not_tried_again(tmp_path: Path) -> None:
    ended = supervise(
        lambda left: [sys.executable, "-c", "import no_such_module"],
        tmp_path / "file", tmp_path / "log", 30.0, dict(os.environ), tmp_path,
    )  # fmt: skip
    assert (ended.state, ended.starts) == ("crashed", 1)
    assert ended.error == "ModuleNotFoundError: No module named 'no_such_module'"
    found = StageResult.of("mnist", "MNIST", 30.0, ended, tmp_path / "file")
    assert found.state == "crashed"


def test_a_stage_that_dies_at_every_item_is_given_up(tmp_path: Path) -> None:
    ended, rows = supervised(tmp_path, *["lost"], *[f"x{i}" for i in range(2)])
    assert ended.starts == 2
    assert LOST_DEVICE == 75
    assert STARTS > 2
    assert set(rows) == {"lost", "x0", "x1"}


shares = st.builds(Share, st.just("s"), st.floats(1, 100), st.floats(1, 20),
                   st.none() | st.floats(1, 100))  # fmt: skip


@given(st.lists(shares, min_size=1, max_size=12), st.floats(0, 1000), st.floats(0, 1))
def test_stages_together_take_no_more_than_there_is(
    coming: list[Share], total: float, used: float
) -> None:
    left = total
    for i in range(len(coming)):
        limit = allowance(left, coming[i:])
        assert limit == 0 or limit >= min(coming[i].least, coming[i].most or coming[i].least)
        assert coming[i].most is None or limit <= coming[i].most
        left -= limit * used
    assert left >= min(total, CLOSING)


def test_time_that_is_not_used_goes_to_those_behind() -> None:
    coming = [Share("a", 1), Share("b", 1), Share("c", 2)]
    whole = 400 + CLOSING + 3
    assert allowance(whole, coming) == pytest.approx(100)
    assert allowance(whole - 100, coming[1:]) == pytest.approx(100)
    assert allowance(whole - 20, coming[1:]) == pytest.approx(380 / 3)
    assert allowance(CLOSING + 3 + 4, coming) == 0
    assert allowance(CLOSING + 3 + 6, coming) == 5


def test_an_items_error_is_its_row(tmp_path: Path) -> None:
    context = Context("s", tmp_path, tmp_path, 60.0, dry=True)

    def raises(error: BaseException) -> Callable[[], dict[str, Any]]:
        def item() -> dict[str, Any]:
            raise error

        return item

    assert context.run("good", lambda: {"n": float("nan"), "t": torch.ones(2)}) is not None
    assert context.run("wrong", raises(FailedError("off by 3", {"error": 3.0}))) is None
    assert context.run("bug", raises(ZeroDivisionError("by nothing\nmore"))) is None
    context.run("large", raises(torch.OutOfMemoryError("tried to allocate 80 GiB")))
    context.run("good", raises(AssertionError("it has been run")))
    context.note("later", "no time")
    found = {line.name: line for line in lines.read(tmp_path / "s.jsonl").lines}
    assert found["good"].numbers == {"n": "nan", "t": [1.0, 1.0]}
    assert (found["wrong"].state, found["wrong"].error) == ("failed", "off by 3")
    assert found["wrong"].numbers == {"error": 3.0}
    assert found["bug"].error == "ZeroDivisionError: by nothing"
    assert found["large"].state == "no memory"
    assert found["later"].state == "not reached"
    assert context.failed == {"wrong"}
    # Another process of the stage goes on behind, and one without time begins nothing.
    late = Context("s", tmp_path, tmp_path, 0.5, dry=True)
    assert late.run("good", dict) is None
    assert late.run("new", dict) is None
    assert lines.read(tmp_path / "s.jsonl").lines[-1].state == "not reached"


def test_the_judge() -> None:
    source = torch.Generator().manual_seed(1)
    truth = torch.randn(64, 512, generator=source, dtype=torch.float64)
    noise = torch.randn(64, 512, generator=source, dtype=torch.float64)
    theirs = truth + 1e-2 * noise
    kink = theirs.flip(0).clone()
    good = truth + 1e-2 * (noise.flip(1))
    good[3, 5] += 1.0  # a value across a kink: one element, by chance

    def told(ours: torch.Tensor) -> dict[str, Any]:
        return judge({"y": ours}, {"y": theirs}, {"y": truth}, torch.bfloat16)

    assert told(good)["of what is allowed"] < 1
    tile, edge, lost = good.clone(), good.clone(), good.clone()
    tile[:16, :16] = 0
    edge[:, -1] = 0
    lost[0, 0] = float("nan")
    for wrong in (tile, edge, lost, kink, truth + 4e-2 * noise):
        with pytest.raises(FailedError, match="y: off by"):
            told(wrong)
    with pytest.raises(FailedError, match="expected"):
        judge({}, {"y": theirs}, {"y": truth}, torch.bfloat16)


def test_bits() -> None:
    a = torch.tensor([0.0, 1.0, float("nan")])
    assert same_bits({"a": a}, {"a": a.clone()}, "both") == {"tensors": 1, "elements": 3}
    for b in (torch.tensor([-0.0, 1.0, float("nan")]), a.half()):
        with pytest.raises(FailedError, match="both: 1 of 1 tensors differ"):
            same_bits({"a": a}, {"a": b}, "both")


def test_launch_tables_are_merged(tmp_path: Path) -> None:
    cut = GemmTile(64, 128, 64, 8, 3, 1, 255)
    present = {"kept": {"candidate": "aten"}, "worse now": {"candidate": "aten"},
               "better now": {"candidate": "aten"}}  # fmt: skip
    tuned = {"worse now": None, "better now": tiles.entry(Choice("gemm", cut)),
             "new": tiles.entry(Choice("aten")), "as the rule": None}  # fmt: skip
    merged = tiles.merged(present, tuned)
    assert list(merged) == ["better now", "kept", "new"]
    file = tmp_path / "table.json"
    file.write_text(json.dumps(merged))
    assert read_table(file) == {
        "kept": Choice("aten"), "new": Choice("aten"), "better now": Choice("gemm", cut),
    }  # fmt: skip


def test_cuts_around_the_rules() -> None:
    call = tiles.Call("mnist", "forward", "cpu|key", False, 1 << 30, 128, dict)
    rule = GemmTile(64, 128, 64, 8, 3, 1, 255)
    choices = tiles.choices_beside(call, rule, Choice("gemm", GemmTile(32, 32, 32)))
    assert choices[:2] == [Choice("gemm", GemmTile(32, 32, 32)), Choice("aten")]
    cuts = [choice.tile for choice in choices[2:]]
    assert 4 <= len(cuts) == len(set(cuts))
    assert rule not in cuts
    assert all(cut and cut.n <= 128 and cut.registers == 255 for cut in cuts)
    flat = tiles.Call("mnist", "forward", "cpu|key", True, 1 << 30, 1024, dict)
    found = tiles.choices_beside(flat, rule, None)
    assert Choice("aten") not in found  # which computes no fully connected layer
    assert any(choice.tile and choice.tile.splits == 2 for choice in found)


def test_a_cut_that_gives_other_numbers_cannot_win() -> None:
    right = {"y": torch.randn(64, 64).bfloat16()}
    rounded = {"y": right["y"] * (1 + torch.finfo(torch.bfloat16).eps)}
    assert tiles.alike(right, rounded) == ""
    assert "off by" in tiles.alike(right, {"y": right["y"] * 1.05})
    assert "not finite" in tiles.alike(right, {"y": right["y"] * float("inf")})
    assert "missing" in tiles.alike(right, {})


def test_the_stand_in_has_the_digits_statistics() -> None:
    source = stand_in(20)
    assert source.images.shape == (200, 28, 28, 1)
    assert source.labels is not None
    assert source.labels.tolist() == [i // 20 for i in range(200)]
    assert 0.09 < source.images.mean() / 255 < 0.17
    assert 0.12 < (source.images > 0).mean() < 0.25
    assert source.fingerprint == stand_in(20).fingerprint
    # Each class is nearer to its own mean than to most others', so that there is something to tell.
    means = source.images.reshape(10, 20, -1).astype(float).mean(1)
    each = source.images.reshape(200, 1, -1).astype(float)
    nearest = ((each - means) ** 2).sum(2).argmin(1)
    assert (nearest == source.labels).mean() > 0.8


def made_up_report() -> Report:
    """As of a GPU: rows of every stage."""
    peers = {"us, fastinfogan": 300.0, "us, eager": 2000.0, "us, best": 900.0, "of eager": 0.15,
             "of best": 0.33, "experiment": "mnist", "batch": 128}  # fmt: skip
    rows = {
        "environment": [Line("the GPU", "ok", 0.1, {"name": "a GPU"}),
                        Line("packages", "ok", 0.1, {"missing": "tyro"}),
                        Line("the images", "ok", 0.1, {"images": "made-up <strokes>"})],
        "compile": [Line("kernels compiled", "ok", 9.0, {"kernels": 300, "with stack": 0})],
        "correctness": [
            Line("mnist trunk, bf16", "ok", 1.0, {"worst": "out", "error": 1e-3,
                 "torch error": 2e-3, "of what is allowed": 0.4}),
            Line("svhn trunk, bf16", "failed", 1.0, {"error": "nan", "torch error": 1e-3},
                 "0.weight: off by <1>")],
        "capture": [Line("replay, mnist, bf16", "ok", 1.0, {"tensors": 130})],
        "iteration": [Line("mnist, batch 128, bf16", "ok", 1.0, peers),
                      Line("mnist, batch 128, bf16, with compiled", "ok", 1.0,
                           {**peers, "us, compiled": 700.0, "of compiled": 0.43})],
        "mnist": [Line("seed 1", "ok", 5.0, {"iterations": 5000, "seconds": 2.5,
                       "L_I of c1": 2.2, "error of c1": 0.06})],
        "tuning": [Line("a", "ok", 1.0, {"pass": "forward", "us, the rule": 10.0,
                        "us, the best": 8.0, "of the rule": 0.8, "entry": {"candidate": "aten"}})],
        "tuned": [Line("mnist", "ok", 1.0, {"experiment": "mnist", "of the rule": 0.9})],
        "blocks": [Line("trunk", "ok", 1.0, {"of eager": 0.3})],
        "scaling": [Line(f"mnist {b}", "ok", 1.0, {"experiment": "mnist", "batch": b,
                    "us": 2.0 * b, "images/s": 5e5}) for b in (32, 64)],
        "memory": [Line("m", "ok", 1.0, {"experiment": "mnist", "batch": 128, "side": side,
                   "MiB allocated": 300.0}) for side in ("captured", "best")],
        "profile": [Line("mnist, as trained", "ok", 1.0, {"launches": 58, "us busy": 280.0})],
    }  # fmt: skip
    facts: dict[str, dict[str, Any]] = {
        "environment": {"missing": {"tyro": "the command line"}},
        "mnist": {
            "curve": [{"iteration": i, "d_loss": 1.0, "g_loss": 1.0, "mi_c1": 0.1 * i,
                       "mi_c2": 0.0, "mi_c3": 0.0} for i in (1, 2)],
            "picture": as_text(torch.zeros(4, 6, dtype=torch.uint8).numpy()),
        },
        "profile": {"table of mnist, as trained": [{"name": "gemm<64>", "count": 3, "us": 2.5,
                                                    "share": 0.9}]},
    }  # fmt: skip
    return Report(
        {"minutes": 8.0, "dry_run": False},
        [
            StageResult(s.name, s.title, "ok", 1.0, 2.0, 1, rows[s.name], facts.get(s.name, {}))
            for s in STAGES
        ],
    )


def test_the_page_and_the_table(tmp_path: Path) -> None:
    made = made_up_report()
    made.stage("capture").error, made.stage("capture").state = "Segmentation fault", "crashed"
    text = page.write(made, tmp_path).read_text()
    assert text.count("<svg") == 7
    assert "no plot" not in text
    for stage in STAGES:
        assert stage.title in text
        assert headline(made.stage(stage.name))
    assert "made-up &lt;strokes&gt;" in text
    assert "off by &lt;1&gt;" in text
    assert "src='data:image/png;base64," in text
    # Nothing is fetched: names of namespaces are no addresses.
    assert not re.search(r"<script|<link|(src|href)=.?(http|//)|url\((?!#)", text)
    told = "\n".join(table(made))
    assert "mnist 300 us, 0.15 of eager, 0.33 of best" in told
    assert "correctness: svhn trunk, bf16: failed: 0.weight: off by <1>" in told
    assert "capture: crashed: Segmentation fault" in told
    assert max(map(len, told.splitlines())) <= 120
    assert len(told) < 12_000
    made.write(tmp_path)
    again = report.read(tmp_path / report.NAME)
    assert "\n".join(table(again)) == told
    (tmp_path / report.NAME).write_text("{}")
    with pytest.raises(InputError, match="not a GPU report"):
        report.read(tmp_path / report.NAME)


def test_without_matplotlib_there_are_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = page.write(made_up_report(), tmp_path).read_text()
    assert "<svg" not in text
    assert "No plots: matplotlib is not installed" in text
    assert "mnist trunk, bf16" in text


def test_a_plot_that_cannot_be_drawn_costs_no_page(tmp_path: Path) -> None:
    made = made_up_report()
    made.stage("scaling").lines = [Line("x", "ok", 1.0, {"batch": 3})]
    text = page.write(made, tmp_path).read_text()
    assert "no plot: KeyError" in text
    assert text.count("<svg") == 6


def test_every_stage_is_a_module() -> None:
    for stage in STAGES:
        assert callable(importlib.import_module(stage.module).stage)
        file = (ROOT / "bench/gpu_report/stages" / f"{stage.name}.py").read_text()
        assert f'main(stage, "{stage.name}")' in file
