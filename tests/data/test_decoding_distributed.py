"""Several ranks and an encoded set: rank 0 decodes it for all."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from fastinfogan.cli import main
from fastinfogan.data import ImageSet
from fastinfogan.data.cache import fill
from fastinfogan.data.cache.storage import cache_folder
from fastinfogan.distributed import Distributed
from fastinfogan.engine import RunDirectory
from tests.helpers.image_files import RawDecoder, encoded
from tests.helpers.torchrun import MNIST, lines, torchrun, without_torchrun


@pytest.mark.slow
def test_rank_0_decodes_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank maps its file; one process trains the same, and goes on with the run."""
    random = np.random.default_rng(7)
    Path("pictures").mkdir()
    for i in range(40):
        image = Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8))
        image.save(f"pictures/{i:03d}.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    more = ("--data", "pictures", "--decoder", "pillow", "--pictures-every", "0")
    two = torchrun(2, *MNIST, *more, "--iterations", "2", "--out", "two")
    reported, _ = two.communicate(timeout=60)
    assert two.returncode == 0, reported
    assert reported.count("decoded by an earlier run") == 1  # rank 0 alone prints
    assert {path.suffix for path in cache_folder().iterdir()} == {".u8", ".json"}
    assert main([*MNIST, *more, "--iterations", "2", "--out", "one"]) == 0
    for actual, expected in zip(lines(Path("two")), lines(Path("one")), strict=True):
        assert actual["d_loss"] == pytest.approx(expected["d_loss"], abs=2e-2)
    assert main(["train", "--resume", "two", "--iterations", "3"]) == 0
    run = RunDirectory.open(Path("two"))
    assert (run.config.ranks, run.read_checkpoint().iteration) == (1, 3)


@pytest.mark.slow
def test_a_bad_image_on_rank_0_ends_all_ranks_with_one_line_each() -> None:
    Path("pictures").mkdir()
    Path("pictures/bad.png").write_bytes(b"")
    reported = []
    data = ("--data", "pictures", "--decoder", "pillow")
    for process in without_torchrun(*MNIST, *data, "--out", "bad"):
        line, _ = process.communicate(timeout=60)
        assert process.returncode == 2, line
        reported.append(line)
    assert reported[0].startswith("fastinfogan, rank 0: ")
    assert "pictures: bad.png cannot be decoded: an empty file" in reported[0]
    assert reported[1].startswith(
        "fastinfogan, rank 1: rank 0 could not decode the images; its mess"
    )
    assert [line.count("\n") for line in reported] == [1, 1]
    assert not Path("bad").exists()


class Meeting(Distributed):
    """One of two ranks; its flags are recorded, and those of the other are made up."""

    met: ClassVar[list[tuple[bool, ...]]] = []

    def any_process(self, *flags: bool) -> list[bool]:
        self.met.append(flags)
        return [len(self.met) > 5, False]


def test_ranks_synchronise_while_rank_0_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single long wait would time out, as any collective does after half an hour."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fill, "_SYNC_EVERY", 0.0)
    monkeypatch.setattr(Meeting, "met", [])
    decoder = RawDecoder(encoded(ImageSet("noise", np.full((800, 2, 2, 1), 7, np.uint8))))
    fill.fill_shared_cache(Meeting(1, 2), decoder, "file", "fail")
    assert not decoder.asked
    assert Meeting.met == 6 * [(False, False)]
    Meeting.met.clear()
    fill.fill_shared_cache(Meeting(0, 2), decoder, "file", "fail")
    assert len(decoder.asked) == 800
    assert Meeting.met[:-1] == 8 * [(False, False)]  # at the start, and after every batch
    assert Meeting.met[-1] == (True, False)
