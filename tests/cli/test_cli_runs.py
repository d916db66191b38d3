"""Whole runs by the command line: trained, stopped, resumed, evaluated, drawn."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastinfogan import experiments
from fastinfogan.cli import main
from fastinfogan.engine import Iteration
from tests.helpers.training import QUICK, fails, full, made_up_images, prints

pytestmark = pytest.mark.usefixtures("narrow_networks")


def short_run(digits: str, *options: str) -> None:
    command = ["train", "mnist", "--data", digits, "--out", "run", *QUICK, *options]
    assert main(command) == 0


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def metrics(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def config_of(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "config.json").read_text())
    return found


def checkpoints_of(run: str) -> list[str]:
    return sorted(folder.name for folder in Path(run, "checkpoints").glob("iteration-*"))


def test_a_run_from_start_to_end(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    short_run(digits, "--iterations", "20")
    printed = " ".join(capsys.readouterr().out.split())
    assert "MI bound" in printed
    assert "c1 as a classifier, no labels used in training" in printed
    assert names("run") == {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "pictures",
        "checkpoints",
    }
    pictures = {"samples.png", "traversal_c1.png", "traversal_c2.png", "traversal_c3.png"}
    assert names("run/pictures") == pictures
    assert list(Path("run/tensorboard").glob("events.out.tfevents.*"))
    config = config_of("run")
    assert config["versions"]["torch"]
    assert config["hardware"]["cpu"]
    assert config["experiment"]["learning_rate_g"] == 1e-3
    first, second = metrics("run")
    assert (first["iteration"], second["iteration"]) == (10, 20)
    parts = {"d_loss", "g_loss", "mi_bound", "mi_categorical", "mi_continuous", "mi_c1"}
    assert parts <= set(first)
    assert first["images_per_second"] > 0
    # Once, beside the rate of the iterations after it.
    assert first["seconds_to_first_iteration"] > 0
    assert "seconds_to_first_iteration" not in second

    assert main(["train", "mnist", "--resume", "run", "--iterations", "30"]) == 0
    assert len(metrics("run")) == 3
    found = json.loads(prints("evaluate", "run", "--json", capsys=capsys))
    assert found["iteration"] == 30
    assert found["mi_bound"] == pytest.approx(sum(found["information"].values()))
    assert 0 <= found["classification"]["c1"]["matching_error"] <= 1
    assert main(["evaluate", "run"]) == 0

    before = {p: p.read_bytes() for p in Path("run/pictures").iterdir()}
    assert main(["sample", "run", "--count", "4", "--seed", "5"]) == 0
    assert main(["traverse", "run", "--code", "c2", "--from", "-1", "--to", "1"]) == 0
    assert names("run/pictures") - pictures == {
        "samples_seed5_count4.png",
        "traversal_c2_from-1_to1.png",
    }
    assert all(path.read_bytes() == content for path, content in before.items())
    assert main(["sample", "run", "--count", "4", "--out", "s.png"]) == 0
    assert Path("s.png").exists()
    assert main(["traverse", "run", "--out", "all"]) == 0
    assert names("all") == pictures - {"samples.png"}

    again = ["train", "mnist", "--init-from", "run", "--iterations", "0", "--data", digits, *QUICK]
    assert main(again) == 0
    assert checkpoints_of("runs/mnist-001") == ["iteration-000000"]
    plan = config_of("runs/mnist-001")["plan"]
    manifest = Path("run/checkpoints/iteration-000030/manifest.json").read_bytes()
    assert plan["iterations"] == 0
    assert plan["init_from"] == {
        "run": str(Path("run").absolute()),
        "checkpoint": "iteration-000030",
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }


def test_resume_takes_the_recorded_iterations(digits: str) -> None:
    short_run(digits, "--iterations", "6", "--checkpoint-every", "2", "--pictures-every", "0")
    plan = config_of("run")["plan"]
    assert plan == {
        "iterations": 6,
        "init_from": None,
        "device": plan["device"],
        "checkpoint_every": 2,
        "pictures_every": 0,
        "cache": "auto",
        "decoder": "auto",
        "on_bad_image": "fail",
    }
    for name in ("iteration-000006", "iteration-000004"):  # as if stopped at 2
        shutil.rmtree(Path("run/checkpoints", name))
    assert main(["train", "--resume", "run"]) == 0
    assert checkpoints_of("run")[-1] == "iteration-000006"
    assert main(["train", "--resume", "run", "--iterations", "8"]) == 0
    assert checkpoints_of("run")[-1] == "iteration-000008"
    assert config_of("run")["plan"] == {**plan, "iterations": 8}
    assert main(["train", "--resume", "run"]) == 0
    assert [line["iteration"] for line in metrics("run")] == [6, 8]


def test_data_that_was_moved(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    short_run(digits, "--iterations", "2")
    Path(digits).rename("moved.npz")
    assert "digits.npz: no such file" in fails("train", "--resume", "run", capsys=capsys)
    printed = prints("evaluate", "run", capsys=capsys)
    assert "MI bound" in printed
    assert "error not measured: " in printed
    assert "digits.npz: no such file or folder" in printed
    found = json.loads(prints("evaluate", "run", "--json", capsys=capsys))
    assert found["classification"] == {}
    assert "no such file" in found["unclassified"]
    assert "absent: no such file" in fails("evaluate", "run", "--data", "absent", capsys=capsys)
    resume = ["train", "--resume", "run", "--iterations", "3"]
    assert main([*resume, "--data", "moved.npz"]) == 0
    assert config_of("run")["settings"]["data"] == str(Path("moved.npz").absolute())
    assert "c1 as a classifier" in prints("evaluate", "run", capsys=capsys)
    assert main(["train", "--resume", "run", "--iterations", "4"]) == 0
    other = made_up_images(experiments.get("mnist"), seed=8)
    np.savez("moved.npz", images=other.images, labels=other.labels)
    assert "not the images of the run any more" in prints("evaluate", "run", capsys=capsys)


def test_init_from_other_networks_leaves_nothing(
    digits: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short_run(digits, "--iterations", "1", "--variant", "categorical-only")
    start = ["train", "mnist", "--data", digits, "--out", "new", *QUICK]
    assert "nowhere: no run here" in fails(*start, "--init-from", "nowhere", capsys=capsys)
    assert "(128, 74) is needed" in fails(*start, "--init-from", "run", capsys=capsys)
    assert not Path("new").exists()

    fitting = [*start, "--variant", "categorical-only", "--init-from", "run"]
    with monkeypatch.context() as patched:
        patched.setattr("fastinfogan.checkpoint.save", full)
        assert main(fitting) == 1
    assert not Path("new").exists()
    assert main([*fitting, "--iterations", "1"]) == 0
    for folder in Path("new/checkpoints").iterdir():
        shutil.rmtree(folder)
    printed = fails("train", "--resume", "new", capsys=capsys)
    assert "was to start from the weights of" in printed


def test_a_run_without_a_checkpoint_resumes_from_its_seed(
    digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("fastinfogan.engine.Trainer.save", _crash)
        with pytest.raises(ZeroDivisionError):
            main(["train", "mnist", "--data", digits, "--iterations", "3", "--out", "cut", *QUICK])
    assert checkpoints_of("cut") == []
    short_run(digits, "--iterations", "3")
    assert main(["train", "--resume", "cut"]) == 0
    weights = "checkpoints/iteration-000003/weights.safetensors"
    assert Path("cut", weights).read_bytes() == Path("run", weights).read_bytes()


def _crash(*_: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_running_out_of_memory_leaves_nothing(
    error: Exception,
    digits: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_much(*_: object, **more: object) -> None:
        raise error

    start = ["train", "mnist", "--data", digits, "--iterations", "2", "--out", "run", *QUICK]
    for where in ("Iteration.run", "Iteration.__init__"):
        with monkeypatch.context() as patched:
            patched.setattr(f"fastinfogan.engine.iteration.{where}", too_much)
            assert "not enough memory; " in fails(*start, capsys=capsys)
        assert not Path("run").exists()
    assert main(start) == 0
    with monkeypatch.context() as patched:
        patched.setattr("fastinfogan.model.Model.generate", too_much)
        assert "take a smaller --count" in fails("sample", "run", capsys=capsys)


def test_divergence_is_one_line(
    digits: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Iteration.read
    monkeypatch.setattr(Iteration, "read", lambda self: {**read(self), "d_loss": float("nan")})
    start = ["train", "mnist", "--data", digits, "--iterations", "10", "--out", "run", *QUICK]
    assert main(start) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "run: training diverged by iteration 10, d_loss is nan" in printed
    assert checkpoints_of("run") == []


def test_only_the_embedded_digits_are_augmented(digits: str) -> None:
    for data, expected in (([], "affine"), (["--data", digits], "none")):
        out = f"run-{expected}"
        assert main(["train", "mnist", "--iterations", "1", "--out", out, *data, *QUICK]) == 0
        assert config_of(out)["settings"]["augmentation"] == expected


def test_figure1_of_a_folder_resumes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pictures").mkdir()
    for i, image in enumerate(made_up_images(experiments.get("mnist"), count=9).images):
        Image.fromarray(image[..., 0]).save(f"pictures/{i}.png")
    command = ["figure1", "--data", "pictures", "--iterations", "3"]
    assert main(command) == 0
    out = Path("runs/figure1-001")
    assert (out / "figure1.png").exists()
    assert config_of(str(out / "infogan"))["settings"]["information"] == "maximise"
    gan = config_of(str(out / "gan"))
    assert gan["settings"]["information"] == "observe"
    assert gan["experiment"]["variants"] == ["categorical-only"]
    again = [*command, "--out", str(out)]
    before = (out / "gan/metrics.jsonl").read_bytes()
    Path(out, "figure1.png").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("fastinfogan.engine.Trainer.train", _crash)
        assert main(again) == 0  # both are done: nothing is trained
    assert (out / "figure1.png").exists()
    assert (out / "gan/metrics.jsonl").read_bytes() == before
    shutil.rmtree(out / "gan")
    assert main([*again, "--iterations", "4"]) == 0
    assert checkpoints_of(str(out / "infogan"))[-1] == "iteration-000004"
    assert checkpoints_of(str(out / "gan")) == ["iteration-000004"]
    printed = fails(*again, "--seed", "1", capsys=capsys)
    assert "infogan: a run of other settings; settings.seed: 0 and 1" in printed
    assert "has done 4 iterations" in fails(*again, capsys=capsys)
    (out / "notes.txt").write_text("mine")
    assert "holds files already" in fails(*again, capsys=capsys)


def send_in_iteration(monkeypatch: pytest.MonkeyPatch, signals: dict[int, signal.Signals]) -> None:
    """Send signals to this process in iterations of a run, by number."""
    run = Iteration.run

    def run_and_signal(self: Iteration, step: int) -> None:
        run(self, step)
        if step in signals:
            os.kill(os.getpid(), signals[step])

    monkeypatch.setattr(Iteration, "run", run_and_signal)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_run_that_can_be_resumed(
    number: signal.Signals,
    code: int,
    digits: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = ["train", "mnist", "--data", digits, "--out", "run", *QUICK]
    with monkeypatch.context() as patched:
        send_in_iteration(patched, {2: number})
        assert main([*start, "--iterations", "50", "--log-every", "1"]) == code
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "go on with: fastinfogan train --resume run --iterations 50" in printed
    (checkpoint,) = checkpoints_of("run")
    done = int(checkpoint.removeprefix("iteration-"))
    assert 3 <= done < 50
    assert main(["train", "--resume", "run", "--iterations", str(done + 1)]) == 0


def test_sigusr1_writes_a_checkpoint(digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    send_in_iteration(monkeypatch, {1: signal.SIGUSR1})
    short_run(digits, "--iterations", "12", "--log-every", "1")
    first, last = checkpoints_of("run")
    assert 2 <= int(first.removeprefix("iteration-")) < 12
    assert last == "iteration-000012"
