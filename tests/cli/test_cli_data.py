"""`fastinfogan data`, and training on encoded images."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastinfogan.cli import main
from fastinfogan.data.cache.storage import cache_folder
from tests.helpers.training import QUICK, fails, prints

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def pictures() -> Path:
    """A folder of 240 PNGs."""
    random = np.random.default_rng(7)
    path = Path("pictures")
    path.mkdir()
    for i in range(240):
        image = random.integers(0, 256, (32, 30, 3), dtype=np.uint8)
        Image.fromarray(image).save(path / f"{i:03d}.png")
    return path


def spoil(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:400])


def weights(run: str, iteration: int) -> bytes:
    return Path(run, f"checkpoints/iteration-{iteration:06d}/weights.safetensors").read_bytes()


def test_info_verify_and_prepare(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def data(*arguments: str) -> str:
        return prints("data", *arguments, "--decoder", "pillow", capsys=capsys)

    printed = data("info", "pictures", "--out", "sheet.png")
    for fact in ("240, 28x28 grey", "the centre to 28x28 grey", "Pillow", "cached in a file"):
        assert fact in printed
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (289, 289)
    assert "0 of 240 images cannot be decoded" in data("verify", "pictures")
    prepare = ("prepare", "pictures", "--experiment", "mnist")
    assert "240 images, 183.8 KiB" in data(*prepare)
    assert "240 of them were there already" in data(*prepare)
    assert "decoded already" in data("info", "pictures")
    assert "1 sets, 183.8 KiB" in prints("info", capsys=capsys)
    spoil(pictures / "007.png")
    spoil(pictures / "100.png")
    assert main(["data", "verify", "pictures", "--decoder", "pillow"]) == 1
    output = capsys.readouterr().out
    assert "007.png: " in output
    assert "2 of 240 images cannot be decoded" in output
    assert main(["data", *prepare, "--decoder", "pillow"]) == 2
    assert "007.png cannot be decoded" in capsys.readouterr().err
    assert "2 cannot be decoded and are skipped" in data(*prepare, "--on-bad-image", "skip")
    assert "nowhere: no such file" in fails("data", "info", "nowhere", capsys=capsys)
    output = fails("data", "info", "pictures", "--out", "no/such/sheet.png", capsys=capsys)
    assert "no/such/sheet.png: cannot be written" in output


@pytest.mark.usefixtures("narrow_networks")
def test_training_skips_bad_images(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bad in ("003.png", "200.png"):
        spoil(pictures / bad)
    train = ["train", "mnist", "--data", "pictures", "--decoder", "pillow", *QUICK]
    output = fails(*train, "--iterations", "60", "--out", "fails", capsys=capsys)
    assert "cannot be decoded" in output
    assert "--on-bad-image skip" in output
    skip = ["--on-bad-image", "skip", "--iterations", "60", "--out", "run"]
    output = prints(*train, *skip, capsys=capsys)
    assert "decoded by Pillow" in output
    assert "2 of 240 images cannot be decoded and are skipped" in output
    lines = [json.loads(each) for each in Path("run/bad_images.jsonl").read_text().splitlines()]
    assert [each["index"] for each in lines] == [3, 200]
    assert {path.suffix for path in cache_folder().iterdir()} == {".u8", ".json"}
    output = prints("train", "--resume", "run", "--iterations", "61", capsys=capsys)
    assert "decoded by an earlier run" in output
    output = fails("train", "--resume", "run", "--on-bad-image", "fail", capsys=capsys)
    assert "003.png cannot be decoded" in output
    (pictures / "000.png").unlink()
    output = fails("train", "--resume", "run", capsys=capsys)
    assert (
        "not the images that run was started with; now and then: images: '239' and '240'" in output
    )


def test_options_of_encoded_images_are_refused_for_decoded_ones(
    digits: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--cache", "off"], ["--decoder", "pillow"], ["--on-bad-image", "skip"]):
        output = fails("train", "mnist", "--data", digits, *option, *QUICK, capsys=capsys)
        assert " ".join(option) in output
        assert "decoded already" in output


NARROW = """
import sys
sys.path.insert(0, {tests!r})
from tests.helpers.training import narrow_experiment
from fastinfogan import experiments
from fastinfogan.cli import main
full = experiments.get
experiments.get = lambda *arguments: narrow_experiment(full(*arguments), 8)
sys.exit(main({arguments!r}))
"""


@pytest.mark.slow
def test_an_interrupted_prepare_is_resumed(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After SIGINT, what was decoded is not decoded again."""
    for i in range(2000):
        Path(pictures, f"more-{i}.png").hardlink_to(pictures / "000.png")
    prepare = ["data", "prepare", "pictures", "--experiment", "mnist", "--decoder", "pillow"]
    # A process that a shell starts in the background ignores SIGINT.
    command = [sys.executable, "-c", INTERRUPTIBLE, *prepare]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for_more_than(0)
        process.send_signal(signal.SIGINT)
        _, reported = process.communicate()
    assert process.returncode == 130
    assert reported.endswith("\nfastinfogan: interrupted\n")
    there = filled()
    assert there > 0
    assert {path.suffix for path in cache_folder().iterdir()} == {".partial", ".sums"}
    output = prints(*prepare, capsys=capsys)
    assert f"; {there:,} of them were there already" in output


INTERRUPTIBLE = """
import signal, sys
from fastinfogan.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


def wait_for_more_than(count: int) -> None:
    deadline = time.monotonic() + 60
    while filled() <= count and time.monotonic() < deadline:
        time.sleep(0.002)


def filled() -> int:
    """The number of images in the partial file."""
    files = list(cache_folder().glob("*.sums"))
    return int(np.count_nonzero(np.fromfile(files[0], np.uint32))) if files else 0


@pytest.mark.slow
@pytest.mark.usefixtures("narrow_networks")
@pytest.mark.parametrize("decoder", ["pillow", "dali"])
def test_a_run_killed_in_mid_epoch_is_resumed_bit_for_bit(
    pictures: Path, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    train = ["train", "mnist", "--data", str(pictures), "--decoder", decoder, *QUICK]
    train += ["--log-every", "1", "--checkpoint-every", "2", "--pictures-every", "0"]
    arguments = [*train, "--iterations", "50", "--out", "killed"]
    program = NARROW.format(tests=str(Path(__file__).parents[2]), arguments=arguments)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        metrics = Path("killed/metrics.jsonl")
        while time.monotonic() < deadline:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= 5:
                break
            time.sleep(0.01)
        process.kill()
    done = max(int(p.name[-6:]) for p in Path("killed/checkpoints").glob("iteration-*"))
    assert 2 <= done < 50
    assert main(["train", "--resume", "killed", "--iterations", str(done + 3)]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("another cache").absolute()))
    assert main([*train, "--iterations", str(done + 3), "--cache", "off", "--out", "whole"]) == 0
    assert weights("killed", done + 3) == weights("whole", done + 3)
