"""Checkpoints: whole or not there; and a run resumed is the run never stopped."""

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import made_up_images, settings_of

from fastinfogan import checkpoint
from fastinfogan.checkpoint import Checkpoint
from fastinfogan.engine import RunDirectory, Schedule, Trainer
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment

CPU = torch.device("cpu")


def small(value: float = 1.0) -> Checkpoint:
    weights = {"a": torch.full((2, 3), value), "b": torch.arange(4)}
    return Checkpoint({"weights": weights}, {"iteration": 7, "value": value})


def start(path: Path, experiment: Experiment, precision: str = "fp32") -> Trainer:
    source = made_up_images(experiment)
    settings = settings_of(source, precision=precision)
    return Trainer(RunDirectory.create(path, experiment, settings), source, CPU)


def go_on(path: Path, experiment: Experiment) -> Trainer:
    trainer = Trainer(RunDirectory.open(path), made_up_images(experiment), CPU)
    trainer.resume()
    return trainer


def digest(trainer: Trainer) -> str:
    """SHA-256 of every tensor of the state and its name."""
    sha = hashlib.sha256(str(trainer.done).encode())
    for kind, tensors in trainer.iteration.state().items():
        for name, tensor in tensors.items():
            sha.update(f"{kind}/{name}".encode())
            sha.update(tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop", [0, 7, 12])
def test_resuming_is_bit_for_bit(tiny: Experiment, stop: int, precision: str) -> None:
    whole = start(Path("whole"), tiny, precision)
    whole.train(24, Schedule())
    start(Path("cut"), tiny, precision).train(stop, Schedule())
    cut = go_on(Path("cut"), tiny)
    assert cut.done == stop
    cut.train(24, Schedule())
    assert digest(cut) == digest(whole)


def test_metrics_of_a_crashed_run_are_those_of_the_run_never_stopped(tiny: Experiment) -> None:
    """A crash at 27 goes back to the checkpoint at 25, in the middle of a line's iterations."""
    start(Path("whole"), tiny).train(40, Schedule())
    crashed = start(Path("crashed"), tiny)
    schedule = Schedule(checkpoint_every=25, stop=lambda: crashed.done == 31 and 1 // 0 == 1)
    with pytest.raises(ZeroDivisionError):
        crashed.train(40, schedule)
    assert [line["iteration"] for line in crashed.run.metrics()] == [10, 20, 30]
    go_on(Path("crashed"), tiny).train(40, Schedule())

    def lines(path: str) -> list[dict[str, float]]:
        timings = ("seconds_per_iteration", "images_per_second")
        every = RunDirectory.open(Path(path)).metrics()
        return [{k: v for k, v in line.items() if k not in timings} for line in every]

    assert lines("crashed") == lines("whole")


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


def test_memory_formats_survive(tiny: Experiment) -> None:
    trainer = start(Path("run"), tiny)
    trainer.train(2, Schedule())
    conv = go_on(Path("run"), tiny).networks.trunk[1].layer.weight
    assert conv.is_contiguous(memory_format=torch.channels_last)


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

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fastinfogan.checkpoint.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(Path("c"), 8, small(2.0))
    assert [folder.name for folder in Path("c").iterdir()] == ["iteration-000007"]
    assert checkpoint.load(Path("c/iteration-000007")).state["value"] == 1.0


def test_training_goes_on_when_a_checkpoint_cannot_be_written(
    tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(Path("run"), tiny)
    warnings: list[str] = []
    save, calls = checkpoint.save, []

    def full_once(*arguments: object) -> Path:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("fastinfogan.checkpoint.save", full_once)
    trainer.train(6, Schedule(checkpoint_every=2, on_warning=warnings.append))
    assert warnings == ["no checkpoint at iteration 2: [Errno 28] No space left on device"]
    names = [folder.name for folder in checkpoint.all_in(Path("run/checkpoints"))]
    assert names == ["iteration-000004", "iteration-000006"]


def test_old_checkpoints_are_pruned(tiny: Experiment) -> None:
    start(Path("run"), tiny).train(10, Schedule(checkpoint_every=2, keep=2))
    names = [folder.name for folder in checkpoint.all_in(Path("run/checkpoints"))]
    assert names == ["iteration-000008", "iteration-000010"]


def test_resume_refuses_what_is_not_the_run(tiny: Experiment) -> None:
    start(Path("run"), tiny).train(2, Schedule())
    other_images = made_up_images(tiny, seed=6)
    with pytest.raises(InputError, match="not the images that run was started with"):
        Trainer(RunDirectory.open(Path("run")), other_images, CPU)
    config = json.loads(Path("run/config.json").read_text())
    config["experiment"]["name"] = "svhn"
    Path("run/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="written by a run of another experiment"):
        go_on(Path("run"), tiny)


def test_weights_of_other_shapes_are_refused_and_nothing_is_copied(tiny: Experiment) -> None:
    start(Path("run"), tiny).train(2, Schedule())
    wider = replace(tiny, generator=(replace(tiny.generator[0], channels=99), *tiny.generator[1:]))
    trainer = start(Path("wider"), wider)
    before = digest(trainer)
    with pytest.raises(InputError, match=r"generator\.0\.layer\.weight is torch\.float32 \(128"):
        trainer.take_weights(RunDirectory.open(Path("run")))
    assert digest(trainer) == before


def test_init_from_takes_weights_alone(tiny: Experiment) -> None:
    first = start(Path("run"), tiny)
    first.train(4, Schedule())
    second = start(Path("second"), tiny)
    second.take_weights(first.run)
    for name, tensor in first.networks.state_dict().items():
        assert torch.equal(second.networks.state_dict()[name], tensor)
    assert second.done == 0
    assert not second.iteration.state()["optimizer"]["generator.0.layer.weight.exp_avg"].any()


def test_a_folder_with_another_run_is_left_alone(tiny: Experiment) -> None:
    start(Path("run"), tiny).train(1, Schedule())
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="run: holds another run already"):
        start(Path("run"), tiny)
    Path("files").mkdir()
    Path("files/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="files: holds files already"):
        start(Path("files"), tiny)
    assert before == {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
