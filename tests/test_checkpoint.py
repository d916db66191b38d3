"""Checkpoints on disk: whole or not there, every byte checked, in the order of their numbers."""

from pathlib import Path

import pytest
import torch

from fastinfogan import checkpoint
from fastinfogan.checkpoint import Checkpoint
from fastinfogan.errors import InputError
from tests.helpers.training import full


def small(value: float = 1.0) -> Checkpoint:
    weights = {"a": torch.full((2, 3), value), "b": torch.arange(4)}
    return Checkpoint({"weights": weights}, {"iteration": 7, "value": value})


def test_a_checkpoint_comes_back_as_it_was() -> None:
    folder = checkpoint.save(Path("c"), 7, small())
    assert folder == Path("c/iteration-000007")
    found = checkpoint.load(folder)
    assert found.state == {"iteration": 7, "value": 1.0}
    assert torch.equal(found.tensors["weights"]["a"], torch.ones(2, 3))
    assert found.tensors["weights"]["b"].dtype == torch.int64
    assert {file.name for file in folder.iterdir()} == {
        "weights.safetensors",
        "state.json",
        "manifest.json",
    }


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
def test_one_flipped_byte_is_found(name: str) -> None:
    folder = checkpoint.save(Path("c"), 7, small())
    file = folder / name
    content = bytearray(file.read_bytes())
    for place in (0, len(content) // 2, len(content) - 2):
        damaged = content.copy()
        damaged[place] ^= 0x01
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="iteration-000007"):
            checkpoint.load(folder)


def test_a_missing_file_is_found() -> None:
    folder = checkpoint.save(Path("c"), 7, small())
    (folder / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="not a whole checkpoint"):
        checkpoint.load(folder)


def test_a_full_disk_leaves_the_older_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(Path("c"), 7, small(1.0))

    with monkeypatch.context() as patched:
        patched.setattr("fastinfogan.files.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(Path("c"), 8, small(2.0))
    assert [folder.name for folder in Path("c").iterdir()] == ["iteration-000007"]
    assert checkpoint.load(Path("c/iteration-000007")).state["value"] == 1.0


def test_checkpoints_are_ordered_by_number_and_nothing_else_is_one() -> None:
    parent = Path("c")
    for iteration in (999_999, 1_000_000, 2, 1_000_500):
        checkpoint.save(parent, iteration, small(iteration))
    for name in ("iteration-", "iteration-12x", "iteration-000003.old", "iteration--4", "notes"):
        (parent / name).mkdir()
    (parent / "iteration-9999999").write_text("a file")
    names = [folder.name for folder in checkpoint.all_in(parent)]
    assert names == [f"iteration-{n}" for n in ("000002", "999999", "1000000", "1000500")]
    checkpoint.prune(parent, 1)
    assert [folder.name for folder in checkpoint.all_in(parent)] == ["iteration-1000500"]
    assert (parent / "iteration-12x").is_dir()
    assert checkpoint.all_in(Path("absent")) == []
