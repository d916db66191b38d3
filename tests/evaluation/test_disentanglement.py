"""Codes against known factors: identical, independent and in between."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastinfogan.data import ImageSet
from fastinfogan.data.image_set import Factors
from fastinfogan.evaluation import measure_disentanglement
from fastinfogan.evaluation.disentanglement import (
    Disentanglement,
    circular_correlation,
    discretize,
    rank_correlation,
    score_factors,
)
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise
from tests.helpers.oracle import oracle
from tests.helpers.training import QUICK, prints

N = 4000
RANDOM = np.random.default_rng(2)
SHAPE = RANDOM.integers(0, 4, N)
SIZE = RANDOM.uniform(-1, 1, N)
ANGLE = RANDOM.uniform(0, 360, N)
FACTORS = Factors(
    ("shape", "size", "angle"),
    np.stack([SHAPE, SIZE, ANGLE], axis=1).astype(np.float32),
    (4, None, None),
    (None, None, 360.0),
)


def score(*codes: np.ndarray, categorical: int = 1, factors: Factors = FACTORS) -> Disentanglement:
    named = {f"c{i + 1}": code for i, code in enumerate(codes)}
    return score_factors(named, categorical, factors, held_out=True)


def test_codes_that_are_the_factors() -> None:
    """By any monotone map, sign or naming of classes."""
    cosine = np.cos(np.deg2rad(ANGLE))
    found = score(np.array([2, 0, 3, 1])[SHAPE], -SIZE, cosine)
    shape, size, angle = (found.factors[name] for name in ("shape", "size", "angle"))
    assert (shape.code, shape.measure) == ("c1", "nmi")
    assert shape.score == pytest.approx(1)
    assert shape.information == pytest.approx(shape.entropy)
    assert shape.entropy == pytest.approx(math.log(4), abs=1e-3)
    assert (size.code, size.measure) == ("c2", "spearman")
    assert size.score == pytest.approx(1)
    assert size.information == pytest.approx(math.log(20), abs=0.05)
    assert (angle.code, angle.measure) == ("c3", "circular")
    assert angle.score == pytest.approx(1)
    # 20 bins of independent values have about (20 - 1)(20 - 1) / 2N nats in common.
    assert shape.gap == pytest.approx(1, abs=0.02)
    assert size.gap == pytest.approx(1, abs=0.04)
    assert found.mig == pytest.approx(np.mean([f.gap for f in found.factors.values()]))
    cubed = score(SHAPE, SIZE**3, cosine)
    assert cubed.factors["size"].score == pytest.approx(1)


def test_independent_codes() -> None:
    random = np.random.default_rng(3)
    found = score(random.integers(0, 4, N), random.uniform(-1, 1, N), random.uniform(-1, 1, N))
    for each in found.factors.values():
        assert each.score < 0.06
        assert each.information < 0.06
    assert 0 <= found.mig < 0.01


def test_two_equal_codes_have_no_gap() -> None:
    found = score(SHAPE, SIZE, SIZE)
    assert found.factors["size"].gap == pytest.approx(0, abs=1e-12)
    assert found.factors["shape"].gap == pytest.approx(1, abs=0.02)


def test_rank_correlation_of_a_noisy_code() -> None:
    """Of a Gaussian code of correlation r, Spearman's rho is (6 / pi) asin(r / 2)."""
    random = np.random.default_rng(4)
    factor = random.normal(size=50_000)
    code = 0.8 * factor + 0.6 * random.normal(size=50_000)
    assert rank_correlation(-code, factor) == pytest.approx(6 / math.pi * math.asin(0.4), abs=0.01)


def test_circular_correlation() -> None:
    angle = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
    assert circular_correlation(3 + 2 * np.sin(angle - 0.7), angle) == pytest.approx(1)
    assert circular_correlation(angle, angle) == pytest.approx(math.sqrt(6) / math.pi, abs=1e-3)
    assert circular_correlation(np.sin(2 * angle), angle) == pytest.approx(0, abs=1e-6)
    # A code that follows half of its variance.
    noisy = np.sin(angle) + np.sin(7 * angle)
    assert circular_correlation(noisy, angle) == pytest.approx(math.sqrt(0.5))


def test_constant_and_not_finite_values() -> None:
    values = np.stack([SIZE, 0 * SIZE], axis=1).astype(np.float32)
    one = Factors(("size", "fixed"), values, (None, None), (None, None))
    found = score(np.zeros(N), categorical=0, factors=one)
    assert list(found.factors) == ["size"]
    assert found.factors["size"].score == 0.0
    assert found.factors["size"].gap is None
    assert found.mig is None
    broken = score(np.full(N, np.nan), np.full(N, np.inf), categorical=0, factors=FACTORS)
    assert {f.score for name, f in broken.factors.items() if name != "shape"} == {0.0}
    assert broken.mig == 0.0
    assert discretize(np.array([0.0, 1.0, 0.5, np.nan, 0.0499])).tolist() == [0, 19, 10, 20, 0]
    assert discretize(np.full(3, 7.0)).tolist() == [0, 0, 0]


def read_pixels(images: torch.Tensor) -> torch.Tensor:
    """Write a pixel's class into the logits and another's brightness into the mean."""
    output = torch.zeros(len(images), 6)
    output[torch.arange(len(images)), (images[:, 0, 0, 0] * 255).round().long()] = 5.0
    output[:, 4] = -images[:, 0, 0, 1]
    return output


def images_with_factors(count: int, seed: int) -> ImageSet:
    random = np.random.default_rng(seed)
    images = np.zeros((count, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0] = random.integers(0, 4, count)
    images[:, 0, 1, 0] = random.integers(0, 256, count)
    values = images[:, 0, :2, 0].astype(np.float32)
    factors = Factors(("class", "light"), values, (4, None), (None, None))
    return ImageSet("made up", images, factors=factors)


def test_a_run_is_scored_on_held_out_images(tiny: Experiment) -> None:
    spec = LatentSpec(Noise(4), (Categorical(4), Continuous()))
    trained = oracle(replace(tiny, latents=spec), read_pixels)
    learned, test = images_with_factors(500, 1), images_with_factors(300, 2)
    found = measure_disentanglement(trained, replace(learned, test=test))
    assert (found.images, found.held_out) == (300, True)
    assert [f.code for f in found.factors.values()] == ["c1", "c2"]
    assert [f.score for f in found.factors.values()] == pytest.approx([1, 1])
    alone = measure_disentanglement(trained, learned)
    assert (alone.images, alone.held_out) == (500, False)
    assert measure_disentanglement(trained, replace(learned, factors=None)) is None
    many = measure_disentanglement(trained, images_with_factors(10_001, 3))
    assert many.images == 10_000


@pytest.mark.usefixtures("narrow_networks")
def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastinfogan.data.synthetic.COUNT", 200)
    train = ("train", "sprites", "--iterations", "1", "--out", "run", *QUICK)
    printed = prints(*train, capsys=capsys)
    assert "factors MIG 0." in printed
    assert "rotation: c" in printed
    evaluate = ("evaluate", "run", "--json")
    found = json.loads(prints(*evaluate, capsys=capsys))["factors"]
    assert found["held_out"] is True
    assert list(found["factors"]) == ["shape", "scale", "rotation", "x", "y"]
    measures = [found["factors"][name]["measure"] for name in ("shape", "scale", "rotation")]
    assert measures == ["nmi", "spearman", "circular"]
    np.savez("plain.npz", images=np.zeros((3, 64, 64), np.uint8))
    plain = json.loads(prints(*evaluate, "--data", "plain.npz", capsys=capsys))
    assert plain["factors"] is None
