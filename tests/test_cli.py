"""The command line as a person meets it: whole runs, and one line for what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import made_up_images, narrowed

from fastinfogan import experiments
from fastinfogan.cli import main
from fastinfogan.experiments import Experiment

QUICK = ["--batch-size", "4", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def narrow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every experiment at an eighth of its widths; the rest as a user gets it."""
    full = experiments.get
    monkeypatch.setattr(
        "fastinfogan.experiments.get", lambda *arguments: narrowed(full(*arguments), 8)
    )


@pytest.fixture
def digits() -> str:
    """A small labelled set of 28x28 images."""
    source = made_up_images(experiments.get("mnist"))
    np.savez("digits.npz", images=source.images, labels=source.labels)
    return "digits.npz"


def fails(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; its one line."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fastinfogan: ")
    return captured.err


def test_help_takes_less_than_a_second() -> None:
    fastest = 10.0
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "fastinfogan", "train", "--help"],
            capture_output=True,
            check=True,
        )
        fastest = min(fastest, time.perf_counter() - start)
    assert b"EXPERIMENT" in done.stdout
    assert fastest < 1.0


def test_help_does_not_import_torch() -> None:
    code = "import sys, fastinfogan.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_from_start_to_end(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "mnist", "--iterations", "20", "--data", digits, "--out", "run", *QUICK]
    assert main(command) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "MI bound" in told
    assert "c1 as a classifier, no labels used in training" in told
    assert {p.name for p in Path("run").iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "pictures",
        "checkpoints",
    }
    assert {p.name for p in Path("run/pictures").iterdir()} == {
        "samples.png",
        "traversal_c1.png",
        "traversal_c2.png",
        "traversal_c3.png",
    }
    assert list(Path("run/tensorboard").glob("events.out.tfevents.*"))
    config = json.loads(Path("run/config.json").read_text())
    assert config["versions"]["torch"]
    assert config["hardware"]["cpu"]
    assert config["experiment"]["learning_rate_g"] == 1e-3
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [10, 20]
    assert {"d_loss", "g_loss", "mi_bound", "mi_categorical", "mi_continuous", "mi_c1"} <= set(
        lines[0]
    )
    assert lines[0]["images_per_second"] > 0

    assert main(["train", "mnist", "--resume", "run", "--iterations", "30"]) == 0
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 3
    capsys.readouterr()
    assert main(["evaluate", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["iteration"] == 30
    assert found["mi_bound"] == pytest.approx(sum(found["information"].values()))
    assert 0 <= found["classification"]["c1"]["matching_error"] <= 1
    assert main(["evaluate", "run"]) == 0
    assert main(["sample", "run", "--count", "4", "--out", "s.png"]) == 0
    assert main(["traverse", "run", "--code", "c2", "--from", "-1", "--to", "1", "--out", "t"]) == 0
    assert Path("s.png").exists()
    assert [p.name for p in Path("t").iterdir()] == ["traversal_c2.png"]
    assert main(["traverse", "run", "--out", "all"]) == 0
    assert len(list(Path("all").iterdir())) == 3

    again = ["train", "mnist", "--init-from", "run", "--iterations", "0", "--data", digits, *QUICK]
    assert main(again) == 0
    assert Path("runs/mnist-001/config.json").exists()


def test_the_embedded_digits_are_augmented_and_others_are_not(digits: str) -> None:
    for data, expected in (([], "affine"), (["--data", digits], "none")):
        out = f"run-{expected}"
        assert main(["train", "mnist", "--iterations", "1", "--out", out, *data, *QUICK]) == 0
        settings = json.loads(Path(out, "config.json").read_text())["settings"]
        assert settings["augmentation"] == expected


@pytest.mark.parametrize("name", experiments.BASES)
def test_every_experiment_trains(name: str) -> None:
    source = made_up_images(experiments.get(name), count=9)
    np.savez("images.npz", images=source.images)
    command = ["train", name, "--iterations", "2", "--data", "images.npz", "--out", "run", *QUICK]
    assert main(command) == 0
    pictures = len(list(Path("run/pictures").glob("*.png")))
    assert pictures == 1 + len(experiments.get(name).latents.codes)


def test_figure1(digits: str) -> None:
    assert main(["figure1", "--iterations", "3", "--data", digits, "--out", "f"]) == 0
    assert Path("f/figure1.png").exists()
    config = {
        name: json.loads(Path("f", name, "config.json").read_text()) for name in ("infogan", "gan")
    }
    assert config["infogan"]["settings"]["information"] == "maximise"
    assert config["gan"]["settings"]["information"] == "observe"
    assert config["gan"]["experiment"]["variants"] == ["categorical-only"]


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    told = capsys.readouterr().out
    for fact in ("torch", "native kernels", "precision", "cache", "mnist", "released"):
        assert fact in told


def test_what_is_wrong_is_told_in_one_line(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "mnist", "--data", digits, "--iterations", "2", *QUICK]
    assert main([*train, "--out", "run"]) == 0
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    for arguments, says in (
        (["train"], "name an experiment to train: mnist, svhn"),
        (["train", "cifar"], "no experiment 'cifar'"),
        (["train", "mnist", "--variant", "azimuth"], "mnist has no variant 'azimuth'"),
        (
            ["train", "mnist", "--data", digits, "--batch-size", "0"],
            "--batch-size must be 2 or more",
        ),
        (["train", "mnist", "--data", digits, "--batch-size", "1"], "batch norm cannot train on"),
        (["train", "mnist", "--iterations", "-1"], "--iterations must be 0 or more, not -1"),
        (["train", "mnist", "--seed", "-1"], "--seed must be 0 or more"),
        (["train", "mnist", "--log-every", "0"], "--log-every must be 1 or more"),
        (["train", "mnist", "--checkpoint-every", "0"], "--checkpoint-every must be 1 or more"),
        (["train", "mnist", "--pictures-every", "-1"], "--pictures-every must be 0 or more"),
        (["train", "mnist", "--data", "absent"], "absent: no such file or folder"),
        (["train", "svhn"], "svhn has no embedded images"),
        (["train", "mnist", "--device", "cuda"], "no usable GPU"),
        ([*train, "--out", "run"], "run: holds another run already"),
        ([*train, "--out", digits], "digits.npz: holds files already"),
        (["train", "--resume", "nowhere"], "nowhere: no run here"),
        (["train", "--resume", "run", "--init-from", "run"], "name one"),
        (["train", "svhn", "--resume", "run"], "run is a run of mnist, not of svhn"),
        (["train", "--resume", "run", "--out", "other"], "name one"),
        (["train", "--resume", "run", "--seed", "9"], "was started with --seed 0"),
        (["train", "--resume", "run", "--batch-size", "5"], "was started with --batch-size 4"),
        (["train", "--resume", "run", "--variant", "released"], "was started with --variant paper"),
        (["train", "--resume", "run", "--precision", "bf16"], "was started with --precision fp32"),
        (["train", "--resume", "run", "--iterations", "1"], "run has done 2 iterations"),
        (["train", "svhn", "--data", digits], "32x32 colour images are needed"),
        (["sample", "run", "--count", "0"], "--count must be 1 or more"),
        (["traverse", "run", "--code", "c7"], "no code 'c7'"),
        (["traverse", "run", "--from", "1"], "name it with --code"),
        (["figure1", "--iterations", "0"], "--iterations must be 1 or more"),
        (["figure1", "--out", "run"], "holds files already"),
        (["evaluate", "nowhere"], "no run here"),
    ):
        if says == "no usable GPU" and _has_gpu():
            continue
        assert says in fails(*arguments, capsys=capsys)
    assert before == {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    assert {p.name for p in Path().iterdir()} == {"digits.npz", "run"}


def test_damaged_runs_are_told_in_one_line(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "mnist", "--data", digits, "--iterations", "1", *QUICK]
    assert main([*train, "--out", "run"]) == 0
    weights = next(Path("run/checkpoints").glob("*/weights.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for command in (["sample", "run"], ["evaluate", "run"], ["train", "--resume", "run"]):
        told = fails(*command, capsys=capsys)
        assert "weights.safetensors: damaged, its SHA-256 is not the manifest's" in told
    weights.write_bytes(content)
    config = Path("run/config.json")
    whole = config.read_text()
    for damaged, says in (
        (whole[:100], "config.json: cannot be read"),
        ("[]", "not a run's description in format 1"),
        (whole.replace('"slope"', '"slop"'), "not the description of an experiment"),
        (whole.replace('"batch_size": 4,\n  "precision"', '"precision"'), "not the settings"),
    ):
        config.write_text(damaged)
        assert says in fails("sample", "run", capsys=capsys)
    config.write_text(whole)
    assert main(["sample", "run"]) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_at_a_boundary_and_the_run_goes_on(
    number: signal.Signals, code: int, tiny: Experiment
) -> None:
    np.savez("digits.npz", images=made_up_images(tiny).images)
    command = ["train", "mnist", "--iterations", "100000", "--data", "digits.npz", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastinfogan", *command, "--log-every", "1", *QUICK],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not Path("run/metrics.jsonl").exists():
        time.sleep(0.05)
    while time.monotonic() < deadline and len(Path("run/metrics.jsonl").read_text()) < 10:
        time.sleep(0.05)
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "go on with: fastinfogan train --resume run --iterations 100000" in told
    (checkpoint,) = Path("run/checkpoints").iterdir()
    done = int(checkpoint.name.removeprefix("iteration-"))
    assert 1 <= done < 100_000
    again = [sys.executable, "-m", "fastinfogan", "train", "--resume", "run"]
    subprocess.run([*again, "--iterations", str(done + 1)], check=True, capture_output=True)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
