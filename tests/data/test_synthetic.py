"""Rendered sets: bit-identical however they are rendered, and as their factors say."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastinfogan import experiments
from fastinfogan.cli import main
from fastinfogan.data import open_image_set, synthetic
from fastinfogan.data.synthetic import SCENES, stored
from fastinfogan.data.synthetic.__main__ import sheet
from fastinfogan.data.synthetic.scene import Float32, Scene
from fastinfogan.errors import InputError
from fastinfogan.files import cache_directory
from tests.helpers.training import QUICK, fails

# SHA-256 of the first 40 images of seed 7. Where one changes, stored.VERSION must increase.
LOOKS = {
    "faces3d": "2f39f87cb1ef9ccb15b87ccddca07e8d4e383729395813f5eba465835001260b",
    "chairs3d": "2c0ba41514517c62deac0f24f0b5995d2dfd83a905ba5f896690c4088da07969",
    "sprites": "bf5da6f3496000e355dc4e6cb04bc5c2b576d85513cbd3f3482048b96d36f8b2",
}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make default sets small."""
    monkeypatch.setattr("fastinfogan.data.synthetic.COUNT", 60)
    return 60


def images_of(scene: Scene, numbers: Float32) -> NDArray[np.int64]:
    return scene.render(numbers)[..., 0].astype(np.int64)


def varied(scene: Scene, factor: str, values: list[float], rows: int = 12) -> NDArray[np.int64]:
    """Render images (values, rows, height, width) that vary in one factor."""
    numbers = synthetic.draw(scene, 3, rows)
    place = [f.name for f in scene.factors].index(factor)
    images = []
    for value in values:
        numbers[:, place] = value
        images.append(images_of(scene, numbers))
    return np.stack(images)


@pytest.mark.parametrize("name", SCENES)
def test_an_image_is_a_function_of_seed_and_number(name: str) -> None:
    """The same alone, in any batch and in any order, and with a fixed SHA-256."""
    scene = SCENES[name]
    numbers = synthetic.draw(scene, 7, 300)
    whole = scene.render(numbers)
    assert hashlib.sha256(whole[:40].tobytes()).hexdigest() == LOOKS[name]
    parts = [scene.render(numbers[s : s + 37]) for s in range(0, 300, 37)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(scene.render(numbers[::-1])[::-1], whole)
    assert np.array_equal(scene.render(numbers[11:12]), whole[11:12])
    assert len(np.unique(whole.reshape(300, -1), axis=0)) == 300


@pytest.mark.parametrize("name", SCENES)
def test_a_set_and_its_factors(name: str) -> None:
    scene = SCENES[name]
    reported: list[tuple[int, int]] = []
    source = synthetic.load(name, 200, 5, progress=lambda *counts: reported.append(counts))
    assert (reported[0], reported[-1]) == ((0, 220), (220, 220))
    assert source.shape == scene.shape
    test, factors = source.test, source.factors
    assert len(test) == 20
    assert factors.names == test.factors.names == tuple(f.name for f in scene.factors)
    for i, factor in enumerate(scene.factors):
        values = factors.values[:, i]
        assert factor.low <= values.min() < values.max() <= factor.high
        if factor.classes:
            assert set(values) == set(range(int(factor.high)))
            assert factors.classes[i] == factor.high
            if scene.label == factor.name:
                assert np.array_equal(source.labels, values)
    assert not (test.images[:, None] == source.images[None, :20]).all(axis=(2, 3, 4)).any()
    larger = synthetic.load(name, 230, 5)
    assert np.array_equal(larger.images[:200], source.images)
    other = synthetic.load(name, 200, 6)
    assert not np.array_equal(other.images, source.images)


def test_heads_match_their_factors() -> None:
    heads = SCENES["faces3d"]
    background = images_of(heads, synthetic.draw(heads, 3, 1))[0, 0, 0]
    narrow, wide = (varied(heads, "width", [-1, 1]) != background).sum(axis=(2, 3))
    assert (wide > narrow).all()
    assert wide.sum() > 1.2 * narrow.sum()
    columns = np.arange(32) - 15.5
    left, right = (varied(heads, "lighting", [-1, 1]) * columns).sum(axis=(2, 3))
    assert (right > left + 5000).all()
    down, up = varied(heads, "elevation", [-1, 1])
    assert (np.abs(up - down).mean(axis=(1, 2)) > 8).all()
    numbers = synthetic.draw(heads, 3, 8)
    numbers[:, 2] = 0
    one = images_of(heads, numbers)
    numbers[:, 0] *= -1
    # A head and its light are the same to both sides: turned the other way it is the mirror image.
    assert np.abs(images_of(heads, numbers)[:, :, ::-1] - one).max() <= 1


def test_chairs_are_periodic_and_occlude() -> None:
    chairs = SCENES["chairs3d"]
    start, half, whole = varied(chairs, "rotation", [-1, 0, 1])
    assert np.abs(start - whole).max() <= 1
    assert (np.abs(start - half).mean(axis=(1, 2)) > 2).all()
    low, high = varied(chairs, "back height", [-1, 1])
    tops = [(each.min(axis=2) < 250).argmax(axis=1) for each in (low, high)]
    assert (tops[0] > tops[1] + 6).all()
    # From behind, a panel hides the seat: all that is seen above the seat's edge is of one tone.
    numbers = synthetic.draw(chairs, 3, 1)
    numbers[:, :5] = [-0.99, 0.0, 0.0, -0.99, 0.5]
    panel = images_of(chairs, numbers)[0, 22:34, 29:35]
    assert panel.max() - panel.min() <= 1
    assert panel.max() < 250


def test_types_and_legs_differ() -> None:
    for factor, count in (("type", 8), ("legs", 4)):
        middles = [(2 * i + 1) / count - 1 for i in range(count)]
        images = varied(SCENES["chairs3d"], factor, middles, rows=6)
        for i in range(count):
            for j in range(i):
                assert (np.abs(images[i] - images[j]).mean(axis=(1, 2)) > 1).all()


def test_sprites_match_their_factors() -> None:
    sprites = SCENES["sprites"]
    numbers = synthetic.draw(sprites, 3, 400)
    images = images_of(sprites, numbers) / 255
    known = sprites.factors_of(numbers).values
    area = images.sum(axis=(1, 2))
    places = np.arange(64) + 0.5
    x = (images.sum(axis=1) * places).sum(axis=1) / area
    y = (images.sum(axis=2) * places).sum(axis=1) / area
    for shape, expected in ((0, 4 * 9.5**2), (1, np.pi * 13.0 * 6.5), (2, 8.5**2 * (4 + np.pi))):
        here = known[:, 0] == shape
        assert np.allclose(area[here], expected * known[here, 1] ** 2, rtol=0.03)
        slack = 0.1 if shape < 2 else 1.6  # a heart turns about a point near its middle
        assert np.abs(x[here] - (15.5 + 33 * known[here, 3])).max() < slack
        assert np.abs(64 - y[here] - (15.5 + 33 * known[here, 4])).max() < slack
    assert images[:, [0, -1]].max() == images[:, :, [0, -1]].max() == 0


def test_a_set_is_rendered_once_unless_its_file_is_damaged() -> None:
    def rendering() -> bool:
        reported: list[int] = []
        found = synthetic.load("sprites", 50, 9, progress=lambda done, _: reported.append(done))
        assert np.array_equal(
            found.images, SCENES["sprites"].render(synthetic.draw(SCENES["sprites"], 9, 50))
        )
        return bool(reported)

    assert rendering()
    assert not rendering()
    (file,) = cache_directory().glob("rendered/sprites-v*-seed9-50+5.npy")
    assert isinstance(synthetic.load("sprites", 50, 9).images, np.memmap)
    whole = file.read_bytes()
    for damaged in (b"", whole[:200], whole[:-1], whole[:5000] + b"\1" + whole[5001:], b"[]" * 99):
        file.write_bytes(damaged)
        assert rendering()
        assert not rendering()
    file.with_suffix(".json").write_text("{")
    assert rendering()
    assert sorted(p.suffix for p in file.parent.glob("*seed9-50*")) == [".json", ".npy"]


def test_an_unwritable_cache_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))
    scene = SCENES["sprites"]
    assert stored.read(scene, 0, (9, 1)) is None
    found = synthetic.load("sprites", 9)
    assert np.array_equal(found.images, scene.render(synthetic.draw(scene, 0, 9)))
    assert len(found.test) == 1  # the fewest


def test_wrong_arguments() -> None:
    for name, count, seed, says in (
        ("faces", 9, 0, "name must be one of faces3d, chairs3d, sprites, not 'faces'"),
        ("sprites", 0, 0, "count must be 1 to 10,000,000, not 0"),
        ("sprites", 10**8, 0, "count must be 1 to 10,000,000, not 100000000"),
        ("sprites", 9, -1, "`seed` must be 0 or more"),
    ):
        with pytest.raises(InputError, match=says):
            synthetic.load(name, count, seed)


@pytest.mark.parametrize("name", ["faces", "chairs", "sprites"])
def test_default_sets_of_experiments(name: str, few: int) -> None:
    source = open_image_set(None, experiments.get(name))
    assert len(source) == few
    assert source.name.startswith(str(experiments.EXPERIMENTS[name].data))


@pytest.mark.usefixtures("narrow_networks", "few")
def test_faces_train_from_one_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    assert main(["train", "faces", "--iterations", "2", "--out", "run", *QUICK]) == 0
    reported = capsys.readouterr()
    assert "66 of 66" in reported.err
    assert "rendering" not in reported.out
    assert json.loads(Path("run/config.json").read_text())["settings"]["augmentation"] == "none"
    assert main(["train", "--resume", "run", "--iterations", "3"]) == 0
    assert "rendering" not in capsys.readouterr().err
    assert "no embedded images" in fails("train", "svhn", capsys=capsys)


@pytest.mark.parametrize("name", SCENES)
def test_contact_sheets(name: str) -> None:
    scene = SCENES[name]
    found = sheet(scene)
    assert found.shape == ((3 + len(scene.factors)) * 64 + 12 * 64 // scene.shape.height, 8 * 64)
