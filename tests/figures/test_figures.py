"""Pictures: their layout, what varies in them, and that the same seed gives the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastinfogan import experiments
from fastinfogan.engine import RunDirectory
from fastinfogan.engine.run_directory import MetricsLog
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from fastinfogan.figures import (
    draw_all,
    draw_figure1,
    draw_samples,
    draw_traversal,
    samples_name,
    traversal_name,
)
from fastinfogan.model import Model
from fastinfogan.networks import InfoGAN
from fastinfogan_kernels.latents import Latents
from tests.helpers.training import made_up_images, narrow_experiment, train_config


class Recorder(Model):
    """Notes which codes pictures are asked for, and paints them flat."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment, InfoGAN(experiment).eval(), 7)
        self.asked: list[Latents] = []

    def generate(self, latents: Latents) -> torch.Tensor:
        self.asked.append(latents)
        e = self.experiment
        return torch.full((len(latents.noise), e.height, e.width, e.channels), 7, dtype=torch.uint8)


def test_a_continuous_code_sweeps_its_range_from_left_to_right(tiny: Experiment) -> None:
    recorder = Recorder(tiny)
    draw_traversal(recorder, "c2", Path("t.png"), rows=4, steps=5)
    asked = recorder.asked[0]
    assert asked.continuous[:, 0].reshape(4, 5).tolist() == [[-2.0, -1.0, 0.0, 1.0, 2.0]] * 4
    for fixed in (asked.noise, asked.classes, asked.continuous[:, 1:]):
        by_row = fixed.reshape(4, 5, -1)
        assert (by_row == by_row[:, :1]).all()
    assert asked.classes[::5, 0].tolist() == [0, 1, 2, 3]
    assert len(np.unique(asked.noise[::5, 0])) == 4


def test_a_categorical_code_takes_each_value_once_in_a_row(tiny: Experiment) -> None:
    recorder = Recorder(tiny)
    draw_traversal(recorder, "c1", Path("t.png"), rows=3)
    assert recorder.asked[0].classes[:, 0].reshape(3, 10).tolist() == [list(range(10))] * 3


def test_ranges_and_defaults(tiny: Experiment) -> None:
    recorder = Recorder(tiny)
    draw_traversal(recorder, "c3", Path("t.png"), rows=1, steps=3, low=0.0, high=1.0)
    assert recorder.asked[0].continuous[:, 1].tolist() == [0.0, 0.5, 1.0]
    faces = Recorder(narrow_experiment(experiments.get("faces"), 32))
    draw_traversal(faces, "c5", Path("t.png"), rows=1, steps=3)
    assert faces.asked[0].continuous[:, 4].tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_all_pictures_of_every_experiment(name: str) -> None:
    e = narrow_experiment(experiments.get(name), 32)
    files = draw_all(Model(e, InfoGAN(e).eval(), 0), Path("pictures"))
    assert [f.name for f in files] == [
        "samples.png",
        *(f"traversal_{code}.png" for code in e.latents.names),
    ]
    for file in files:
        with Image.open(file) as picture:
            assert picture.mode == ("RGB" if e.channels == 3 else "L")
            assert np.ptp(np.asarray(picture)) > 0


def test_the_grid_holds_each_image_where_it_belongs(tiny: Experiment) -> None:
    class Numbered(Recorder):
        def generate(self, latents: Latents) -> torch.Tensor:
            flat = super().generate(latents)
            return flat * 0 + torch.arange(len(flat), dtype=torch.uint8)[:, None, None, None]

    draw_samples(Numbered(tiny), Path("s.png"), count=6)
    sheet = np.asarray(Image.open("s.png"))
    cell = 2 * 28 + 2
    centres = [[int(sheet[22 + 30 + cell * r, 30 + cell * c]) for c in range(3)] for r in range(2)]
    assert centres == [[0, 1, 2], [3, 4, 5]]


def test_the_same_seed_draws_the_same(tiny: Experiment) -> None:
    trained = Model(tiny, InfoGAN(tiny).eval(), 0)
    one, two, three = (
        draw_samples(trained, Path(f"{i}.png"), 9, seed).read_bytes()
        for i, seed in enumerate((1, 1, 2))
    )
    assert one == two != three


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"code": "c9"}, "no code 'c9'; this run has c1, c2, c3"),
        ({"code": "c1", "low": 0.0}, "c1 is categorical"),
        ({"low": 1.0, "high": 1.0}, "is empty"),
        ({"low": float("-inf")}, "`low` must be a finite number, not -inf"),
        ({"high": float("nan")}, "`high` must be a finite number, not nan"),
        ({"high": 1e39}, "`high` must be a finite number"),
        ({"seed": -1}, "`seed` must be 0 or more"),
        ({"rows": 10**9}, "`rows` must be 100 or less"),
        ({"rows": 0}, "`rows` must be 1 or more, not 0"),
        ({"steps": 1}, "`steps` must be 2 or more, not 1"),
    ],
)
def test_wrong_traversals(tiny: Experiment, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        draw_traversal(Recorder(tiny), **{"code": "c2", "file": Path("t.png"), **arguments})


def test_wrong_samples(tiny: Experiment) -> None:
    Path("folder.png").mkdir()
    Path("taken").touch()
    not_png = r"pictures are written as \.png files"
    for file, count, says in (
        ("s.png", 0, "`count` must be 1 or more"),
        ("s.png", 10**9, "`count` must be 10,000 or less, not 1000000000"),
        *((name, 4, not_png) for name in (".", "s.jpg", "s", "folder.png")),
        ("taken/s.png", 4, "cannot be written"),
    ):
        with pytest.raises(InputError, match=says):
            draw_samples(Recorder(tiny), Path(file), count)


def test_names_tell_what_is_not_the_runs_own_way(tiny: Experiment) -> None:
    assert samples_name() == "samples.png"
    assert samples_name(4, 5) == "samples_seed5_count4.png"
    assert samples_name(seed=5) == "samples_seed5.png"
    for options, expected in (
        ({}, ""),
        ({"low": -2.0, "high": 2.0}, ""),
        ({"low": -1.0, "high": 1.0}, "_from-1_to1"),
        ({"low": 0.25, "seed": 3, "rows": 2, "steps": 5}, "_from0.25_to2_seed3_rows2_steps5"),
    ):
        name = traversal_name(Recorder(tiny), "c2", **options)
        assert name == f"traversal_c2{expected}.png"


def test_a_picture_that_cannot_be_written_leaves_nothing(
    tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, file: Path, *_: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left"):
        draw_samples(Recorder(tiny), Path("p/s.png"), 4)
    assert list(Path("p").iterdir()) == []


def test_figure1_plots_both_runs(tiny: Experiment) -> None:
    runs = []
    for name in ("infogan", "gan"):
        run = RunDirectory.create(Path(name), tiny, train_config(made_up_images(tiny)))
        log = MetricsLog(run, 0)
        for iteration in range(1, 20):
            log.write({"iteration": iteration, "mi_bound": 2.3 - 2.0 / iteration})
        log.close()
        runs.append(run)
    with Image.open(draw_figure1(*runs, Path("f/figure1.png"))) as picture:
        colours = {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    assert {(0x1F, 0x5F, 0xA8), (0xC6, 0x5A, 0x11)} <= colours
