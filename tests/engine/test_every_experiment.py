"""Every experiment trains from one command, on the images that the paper takes or on our own."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fastinfogan.data import synthetic
from tests.helpers.training import prints


def svhn() -> str:
    """A train_32x32.mat."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (32, 32, 3, 40), dtype=np.uint8)
    labels = random.integers(1, 11, (40, 1)).astype(np.uint8)
    savemat("train_32x32.mat", {"X": images, "y": labels})
    return "train_32x32.mat"


def celeba() -> str:
    """An img_align_celeba with the list of its partition."""
    random = np.random.default_rng(2)
    folder = Path("img_align_celeba")
    folder.mkdir()
    names = [f"{i:06d}.jpg" for i in range(1, 25)]
    for name in names:
        small = Image.fromarray(random.integers(0, 256, (8, 6, 3), dtype=np.uint8))
        small.resize((178, 218), Image.Resampling.BICUBIC).save(folder / name)
    lines = [f"{name} {2 if i > 20 else 0}" for i, name in enumerate(names)]
    Path("list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


DATA = {"svhn": svhn, "celeba": celeba}


@pytest.mark.usefixtures("narrow_networks")
@pytest.mark.parametrize("name", ["mnist", "svhn", "celeba", "faces", "chairs", "sprites"])
def test_twenty_iterations(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic, "COUNT", 200)
    data = ["--data", DATA[name]()] if name in DATA else []
    command = ["train", name, *data, "--iterations", "20", "--batch-size", "4", "--out", "run"]
    printed = prints(*command, capsys=capsys)
    assert "iterations 0 to 20" in printed
    assert "MI bound" in printed
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [10, 20]
    assert all(line["skipped"] == 0 for line in lines)
    assert Path("run/pictures/samples.png").stat().st_size > 1000
