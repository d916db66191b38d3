"""Runs stopped, crashed, resumed and diverged: a run resumed is the run never stopped."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastinfogan import checkpoint
from fastinfogan.engine import RunDirectory, Schedule, Trainer
from fastinfogan.engine.config import ComputedIn
from fastinfogan.engine.run_directory import MetricsLog
from fastinfogan.errors import InputError, TrainingError
from fastinfogan.experiments import Experiment
from fastinfogan.model import Model
from fastinfogan_kernels.inputs.real_images import Augmentation
from tests.helpers.training import digest, full, made_up_images, train_config

CPU = torch.device("cpu")


def start(path: str, experiment: Experiment, **settings: Any) -> Trainer:  # noqa: ANN401
    source = made_up_images(experiment)
    config = train_config(source, **settings)
    return Trainer(RunDirectory.create(Path(path), experiment, config), source, CPU)


def go_on(path: str, experiment: Experiment) -> Trainer:
    trainer = Trainer(RunDirectory.open(Path(path)), made_up_images(experiment), CPU)
    trainer.resume()
    return trainer


@pytest.fixture
def run(tiny: Experiment) -> RunDirectory:
    """A run of two iterations."""
    trainer = start("run", tiny)
    trainer.train(2)
    return trainer.run


def checkpoints() -> list[int]:
    """Iterations of the run's checkpoints."""
    return [int(folder.name[-6:]) for folder in checkpoint.all_in(Path("run/checkpoints"))]


def logged(run: RunDirectory) -> list[int]:
    """Iterations of the run's lines of metrics."""
    return [line["iteration"] for line in run.metrics()]


@pytest.mark.parametrize(
    ("stop", "precision", "augmentation"),
    [
        *((stop, precision, "none") for stop in (0, 7, 12) for precision in ("fp32", "bf16")),
        (7, "fp16", "none"),
        (7, "fp32", "affine"),
    ],
)
def test_resuming_is_bit_for_bit(
    tiny: Experiment, stop: int, precision: ComputedIn, augmentation: Augmentation
) -> None:
    settings = {"precision": precision, "augmentation": augmentation}
    whole = start("whole", tiny, **settings)
    whole.train(16)
    start("cut", tiny, **settings).train(stop)
    cut = go_on("cut", tiny)
    assert cut.step == stop
    cut.train(16)
    assert digest(cut) == digest(whole)


def test_metrics_of_a_crashed_run_are_those_of_the_run_never_stopped(tiny: Experiment) -> None:
    """A crash at 27 goes back to the checkpoint at 25, in the middle of a line's iterations."""
    start("whole", tiny).train(40)
    crashed = start("crashed", tiny)
    schedule = Schedule(checkpoint_every=25, stop=lambda: crashed.step == 31 and 1 // 0 == 1)
    with pytest.raises(ZeroDivisionError):
        crashed.train(40, schedule)
    assert logged(crashed.run) == [10, 20, 30]
    go_on("crashed", tiny).train(40)

    def lines(path: str) -> list[dict[str, float]]:
        timings = (
            "seconds_per_iteration", "images_per_second", "seconds_to_first_iteration",
        )  # fmt: skip
        every = RunDirectory.open(Path(path)).metrics()
        return [{k: v for k, v in line.items() if k not in timings} for line in every]

    assert lines("crashed") == lines("whole")


@pytest.mark.usefixtures("run")
def test_memory_formats_survive(tiny: Experiment) -> None:
    conv = go_on("run", tiny).networks.trunk[1].layer.weight
    assert conv.is_contiguous(memory_format=torch.channels_last)


def test_training_goes_on_when_a_checkpoint_cannot_be_written(
    tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start("run", tiny)
    warnings: list[str] = []
    save, calls = checkpoint.save, []

    def full_once(*arguments: object) -> Path:
        calls.append(arguments)
        if len(calls) == 1:
            full()
        return save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("fastinfogan.checkpoint.save", full_once)
    trainer.train(6, Schedule(checkpoint_every=2, on_warning=warnings.append))
    assert warnings == ["no checkpoint at iteration 2: [Errno 28] No space left on device"]
    assert checkpoints() == [4, 6]


def test_old_checkpoints_are_pruned(tiny: Experiment) -> None:
    start("run", tiny).train(10, Schedule(checkpoint_every=2, keep=2))
    assert checkpoints() == [8, 10]


def edit(part: str, field: str, value: object) -> None:
    """Change one field of run/config.json."""
    file = Path("run/config.json")
    config = json.loads(file.read_text())
    config[part][field] = value
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("part", "field", "value", "says"),
    [
        ("experiment", "name", "svhn", "another experiment"),
        ("experiment", "slope", 0.2, r"another experiment .*; slope: 0\.2 and 0\.1"),
        ("experiment", "variants", ["released"], "another experiment .*; variants"),
        ("settings", "seed", 4, "another settings .*; seed: 4 and 3"),
        ("settings", "log_every", 11, "another settings .*; log_every: 11 and 10"),
    ],
)
@pytest.mark.usefixtures("run")
def test_a_config_that_is_not_the_checkpoints_is_refused(
    tiny: Experiment, part: str, field: str, value: object, says: str
) -> None:
    edit(part, field, value)
    with pytest.raises(InputError, match=says):
        go_on("run", tiny)
    with pytest.raises(InputError, match=says):
        Model.load(Path("run"), CPU)


@pytest.mark.usefixtures("run")
def test_a_digit_flipped_in_a_block_table_is_named() -> None:
    tables = json.loads(Path("run/config.json").read_text())["experiment"]["trunk"]
    tables[1]["channels"] += 1
    edit("experiment", "trunk", tables)
    with pytest.raises(InputError, match=r"trunk\.1\.channels: 17 and 16"):
        Model.load(Path("run"), CPU)


@pytest.mark.usefixtures("run")
def test_where_the_images_lie_is_not_compared(tiny: Experiment) -> None:
    edit("settings", "data", "/elsewhere")
    assert go_on("run", tiny).step == 2


def test_the_checkpoint_is_written_before_the_pictures(tiny: Experiment) -> None:
    trainer = start("run", tiny)
    seen: list[list[int]] = []
    schedule = Schedule(
        checkpoint_every=1, pictures_every=1, on_pictures=lambda: seen.append(checkpoints())
    )
    trainer.train(2, schedule)
    assert seen == [[1], [1, 2], [1, 2]]


def test_training_goes_on_without_pictures_and_metrics(
    tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start("run", tiny)
    warnings: list[str] = []

    def no_picture() -> None:
        raise InputError("samples.png: cannot be written")

    with monkeypatch.context() as patched:
        patched.setattr("fastinfogan.engine.run_directory.MetricsLog.write", full)
        schedule = Schedule(pictures_every=5, on_pictures=no_picture, on_warning=warnings.append)
        trainer.train(10, schedule)
    assert [warning.partition(":")[0] for warning in warnings] == [
        "no pictures at iteration 5",
        "no metrics at iteration 10",
        "no pictures at iteration 10",
        "no pictures at iteration 10",
    ]
    assert checkpoint.all_in(Path("run/checkpoints"))


def test_the_last_checkpoint_must_be_written(
    tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start("run", tiny)
    monkeypatch.setattr("fastinfogan.checkpoint.save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train(2)


def test_ruined_lines_of_metrics_are_skipped_and_the_rest_kept(tiny: Experiment) -> None:
    trainer = start("run", tiny)
    trainer.train(20)
    file = Path("run/metrics.jsonl")
    one, two = file.read_bytes().splitlines()
    ruined = [b"\xff\xfe\x00", one, b'{"iteration": 15, "d_l', b"[1, 2]", b"{}", b"", two]
    file.write_bytes(b"\n".join(ruined) + b'\n{"iter')
    assert logged(trainer.run) == [10, 20]
    go_on("run", tiny).train(30)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [10, 20, 30]  # and nothing else
    assert not list(Path("run").glob("*.partial"))


def test_a_line_after_a_torn_one_is_whole(
    tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(start("run", tiny).run, 0)
    log.write({"iteration": 1})
    opened = Path.open

    def torn(self: Path, *arguments: object) -> object:
        with opened(self, "a") as file:
            file.write('{"itera')
        full()

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", torn)
        with pytest.raises(OSError, match="No space"):
            log.write({"iteration": 2})
    log.write({"iteration": 3})
    log.close()
    assert logged(RunDirectory.open(Path("run"))) == [1, 3]


@pytest.mark.parametrize("log_every", [10, 7])
def test_training_that_diverges_stops_and_saves_nothing_of_it(
    tiny: Experiment, log_every: int
) -> None:
    trainer = start("run", tiny, log_every=log_every)

    def poison() -> bool:
        if trainer.step == 15:
            with torch.no_grad():
                next(trainer.networks.generator.parameters()).fill_(float("nan"))
        return False

    with pytest.raises(
        TrainingError, match=r"run: training diverged by iteration (20|16)"
    ) as caught:
        trainer.train(40, Schedule(checkpoint_every=4, stop=poison))
    assert "\n" not in str(caught.value)
    assert "its newest checkpoint is of iteration 12" in str(caught.value)
    assert checkpoints() == [4, 8, 12]
    for line in RunDirectory.open(Path("run")).metrics():
        assert all(math.isfinite(value) for value in line.values())


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("settings", "precision", "fp8"),
        ("settings", "information", "hide"),
        ("settings", "augmentation", "mirror"),
        ("settings", "batch_size", "8"),
        ("settings", "batch_size", True),
        ("settings", "seed", 2**64),
        ("settings", "seed", 0.5),
        ("settings", "data", 7),
        ("plan", "iterations", -1),
        ("plan", "init_from", {"run": 3}),
        ("plan", "device", "tpu"),
        ("experiment", "slope", "steep"),
        ("experiment", "trunk", [{"kind": "xonv", "channels": 4}]),
        ("experiment", "latents", {"noise": {"size": "62"}, "codes": []}),
        ("experiment", "sweep", [1]),
    ],
)
def test_a_config_with_nonsense_in_it_is_refused(
    tiny: Experiment, part: str, field: str, value: object
) -> None:
    RunDirectory.create(Path("run"), tiny, train_config(made_up_images(tiny)))
    edit(part, field, value)
    with pytest.raises(InputError, match=r"config\.json: not the (settings|description)") as caught:
        RunDirectory.open(Path("run"))
    assert "\n" not in str(caught.value)


def test_weights_of_other_shapes_are_refused_and_nothing_is_copied(
    tiny: Experiment, run: RunDirectory
) -> None:
    wider = replace(tiny, generator=(replace(tiny.generator[0], channels=99), *tiny.generator[1:]))
    trainer = start("wider", wider)
    before = digest(trainer)
    with pytest.raises(InputError, match=r"generator\.0\.layer\.weight is torch\.float32 \(128"):
        trainer.take_weights(run.read_checkpoint())
    assert digest(trainer) == before


def test_init_from_takes_weights_alone(tiny: Experiment) -> None:
    first = start("run", tiny)
    first.train(4)
    second = start("second", tiny)
    second.take_weights(first.run.read_checkpoint())
    for name, tensor in first.networks.state_dict().items():
        assert torch.equal(second.networks.state_dict()[name], tensor)
    assert second.step == 0
    assert not second.iteration.state()["optimizer"]["generator.0.layer.weight.exp_avg"].any()
