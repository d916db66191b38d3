"""Help, info, and one line for each error."""

import sys
from pathlib import Path

import pytest
import torch

from fastinfogan.cli import main
from tests.helpers.training import QUICK, fails

pytestmark = pytest.mark.usefixtures("narrow_networks")


def test_ctrl_c_anywhere_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for where in ("tyro.cli", "fastinfogan.cli.train.Train.run"):
        with monkeypatch.context() as patched:
            patched.setattr(where, interrupted)
            assert main(["train", "mnist"]) == 130
        assert capsys.readouterr().err == "fastinfogan: interrupted\n"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for fact in ("torch", "native kernels", "precision", "cache", "mnist", "released"):
        assert fact in printed


def test_errors_are_one_line(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "mnist", "--data", digits, "--iterations", "2", *QUICK]
    assert main([*train, "--out", "run"]) == 0
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    for arguments, says in (
        (["train"], "name an experiment to train: mnist, svhn"),
        (["train", "cifar"], "no experiment 'cifar'"),
        (["train", "mnist", "--variant", "azimuth"], "mnist has no variant 'azimuth'"),
        (["train", "mnist", "--batch-size", "0"], "--batch-size must be 2 or more"),
        (["train", "mnist", "--batch-size", "1"], "batch norm cannot train on"),
        (["train", "mnist", "--batch-size", "1000000000"], "--batch-size must be 65,536 or less"),
        (["train", "mnist", "--iterations", "-1"], "--iterations must be 0 or more, not -1"),
        (["train", "mnist", "--iterations", "4294967296"], "--iterations must be 4,294,967,295 or"),
        (["train", "svhn", "--data", "absent"], "no such file or folder; give"),
        (["train", "mnist", "--precision", "tf32", "--device", "cpu"], "--precision tf32: this"),
        (["train", "mnist", "--seed", str(2**64)], "below 2^64"),
        (["figure1", "--seed", "-1"], "--seed must be 0 or more"),
        (["sample", "run", "--seed", "-1"], "--seed must be 0 or more"),
        (["traverse", "run", "--seed", str(2**64)], "--seed must be 0 or more"),
        (["evaluate", "run", "--seed", "-1"], "--seed must be 0 or more"),
        (["sample", "run", "--count", "1000000000"], "--count must be 10,000 or less"),
        (["sample", "run", "--out", "."], ".: pictures are written as .png files"),
        (["sample", "run", "--out", "s.jpg"], "s.jpg: pictures are written as .png files"),
        (["traverse", "run", "--code", "c2", "--to", "inf"], "--to must be a finite number"),
        (["figure1", "--out", digits], "digits.npz: a file, where a folder is needed"),
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
        if says == "no usable GPU" and torch.cuda.is_available():
            continue
        assert says in fails(*arguments, capsys=capsys)
    assert before == {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    assert {p.name for p in Path().iterdir()} == {"digits.npz", "run"}


def test_damaged_runs_are_one_line(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "mnist", "--data", digits, "--iterations", "1", *QUICK]
    assert main([*train, "--out", "run"]) == 0
    weights = next(Path("run/checkpoints").glob("*/weights.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for command in (["sample", "run"], ["evaluate", "run"], ["train", "--resume", "run"]):
        printed = fails(*command, capsys=capsys)
        assert "weights.safetensors: damaged, its SHA-256 is not the manifest's" in printed
    weights.write_bytes(content)
    config = Path("run/config.json")
    whole = config.read_text()
    for damaged, says in (
        (whole[:100], "config.json: cannot be read"),
        ("[]", "not a run's description in format 4"),
        (whole.replace('"slope"', '"slop"'), "not the description of an experiment"),
        (whole.replace('"fp32"', '"fp31"'), "precision cannot be 'fp31'"),
        (whole.replace('"seed": 0', '"seed": 1'), "seed: 1 and 0"),
        (whole.replace('"batch_size": 4,\n  "precision"', '"precision"'), "not the settings"),
    ):
        config.write_text(damaged)
        assert says in fails("sample", "run", capsys=capsys)
    config.write_text(whole)
    assert main(["sample", "run"]) == 0


def test_bench_runs_the_suite_of_a_checkout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for suite in ("counts", "parity"):
        assert "the benchmark suite is in fastinfogan's repository" in fails(
            "bench", suite, "--json", capsys=capsys
        )
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert "no experiment 'cifar'" in fails("bench", "counts", "cifar", capsys=capsys)
    assert "seeds must be" in fails("bench", "parity", "--seeds", "1", capsys=capsys)
