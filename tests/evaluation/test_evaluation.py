"""Codes as classifiers, the bound on fresh codes, and networks used without being changed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastinfogan.data import ImageSet
from fastinfogan.engine import RunDirectory, Schedule, Trainer
from fastinfogan.errors import InputError
from fastinfogan.evaluation import Evaluation, classify, evaluate, fresh_information
from fastinfogan.evaluation.classification import confusion, error, match_classes, why_unclassified
from fastinfogan.experiments import Experiment
from fastinfogan.model import Model
from fastinfogan.networks import InfoGAN
from fastinfogan_kernels.inputs.draw import to_tensors
from fastinfogan_kernels.philox import Stream
from tests.helpers.oracle import oracle
from tests.helpers.training import made_up_images, train_config


def test_matching_finds_the_permutation() -> None:
    meaning = np.array([3, 1, 0, 2])
    values = np.repeat(np.arange(4), 25)
    labels = meaning[values]
    labels[::10] = (labels[::10] + 1) % 4
    table = confusion(values, labels, 4, 4)
    assert table.sum() == 100
    assert np.array_equal(match_classes(table), meaning)
    assert error(match_classes(table), values, labels) == pytest.approx(0.1)


def test_matching_gives_each_class_once_and_majority_does_not() -> None:
    table = np.array([[50, 0], [40, 10], [0, 5]])
    assert match_classes(table).tolist() == [0, 1, -1]
    assert table.argmax(axis=1).tolist() == [0, 0, 1]


PERMUTED = torch.tensor([4, 2, 9, 0, 1, 3, 8, 5, 6, 7])
"""The value of c1 for each digit."""


@pytest.fixture
def reader(tiny: Experiment) -> Model:
    """A model whose Q reads a digit out of the first pixel."""

    def read(images: torch.Tensor) -> torch.Tensor:
        output = torch.zeros(len(images), tiny.latents.output_width)
        digits = (images[:, 0, 0, 0] * 255).round().long()
        output[torch.arange(len(images)), PERMUTED[digits]] = 5.0
        return output

    return oracle(tiny, read)


def labelled(count: int, seed: int) -> ImageSet:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    images = random.integers(0, 256, (count, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0] = labels
    return ImageSet("labelled", images, labels)


def test_a_code_that_is_the_digit_has_no_errors(reader: Model) -> None:
    scores = classify(reader, labelled(600, 1))
    assert scores["c1"].matching_error == scores["c1"].majority_error == 0.0
    assert (scores["c1"].fitted_on, scores["c1"].scored_on) == (300, 300)
    one = labelled(600, 1)
    with_test = ImageSet("both", one.images, one.labels, labelled(50, 2))
    assert classify(reader, with_test)["c1"].scored_on == 50


def test_an_independent_code_is_at_chance(reader: Model) -> None:
    source = labelled(2000, 3)
    random = np.random.default_rng(4)
    images = source.images.copy()
    images[:, 0, 0, 0] = random.integers(0, 10, 2000)
    found = classify(reader, ImageSet("noise", images, source.labels))["c1"]
    assert 0.85 < found.matching_error < 0.95


def test_without_labels_there_is_no_classifier(reader: Model) -> None:
    unlabelled = ImageSet("unlabelled", labelled(9, 1).images)
    assert classify(reader, unlabelled) == {}
    assert why_unclassified(reader, unlabelled) == "unlabelled: no labels"
    alone = labelled(1, 1)
    assert classify(reader, alone) == {}
    assert why_unclassified(reader, alone) == "labelled: fewer than 2 labelled images"
    two = labelled(2, 1)
    assert classify(reader, two)["c1"].scored_on == 1


def test_large_label_values(reader: Model) -> None:
    few = labelled(600, 1)
    large = ImageSet("large", few.images, few.labels * 10**17 + 5)
    assert classify(reader, large) == classify(reader, few)
    test = ImageSet("test", few.images[:50], large.labels[:50])
    with_test = ImageSet("both", few.images, large.labels, test)
    assert classify(reader, with_test)["c1"].matching_error == 0.0


def test_values_that_are_not_finite_are_null() -> None:
    found = Evaluation("mnist", 3, {"c1": float("nan"), "c2": 1.0}, {"c1": 2.0, "c2": 0.5}, {})
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["information"] == {"c1": None, "c2": 1.0}
    assert json.loads(text)["mi_bound"] is None


@pytest.fixture
def trained_run(tiny: Experiment) -> RunDirectory:
    source = made_up_images(tiny)
    run = RunDirectory.create(Path("run"), tiny, train_config(source))
    Trainer(run, source, torch.device("cpu")).train(20, Schedule())
    return run


def test_evaluation_uses_running_statistics(trained_run: RunDirectory, tiny: Experiment) -> None:
    """An image does not depend on the others of its batch, and evaluation changes no state."""
    trained = Model.load(trained_run.path, torch.device("cpu"))
    before = {k: v.clone() for k, v in trained.networks.state_dict().items()}
    latents = tiny.latents.draw(1, 0, Stream.PICTURES, 30)
    together = trained.generate(latents)
    alone = trained.generate(
        type(latents)(latents.noise[:1], latents.classes[:1], latents.continuous[:1])
    )
    assert torch.equal(together[:1], alone)
    assert together.dtype == torch.uint8
    assert together.shape == (30, 28, 28, 1)
    evaluate(trained, made_up_images(tiny))
    after = trained.networks.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_fresh_information_is_the_bound(trained_run: RunDirectory, tiny: Experiment) -> None:
    trained = Model.load(trained_run.path, torch.device("cpu"))
    found = fresh_information(trained, rows=700, seed=5)
    assert list(found) == ["c1", "c2", "c3"]
    latents = tiny.latents.draw(5, 0, Stream.EVALUATION, 700)
    codes = to_tensors(latents, tiny.latents)
    logits = trained.read_generated(codes)[:, :10]
    expected = np.log(10) - torch.nn.functional.cross_entropy(logits, codes.classes[:, 0]).item()
    assert found["c1"] == pytest.approx(expected, abs=1e-5)
    assert fresh_information(trained, rows=700, seed=5) == found
    assert fresh_information(trained, rows=700, seed=6) != found


def test_borrowed_networks_return_to_training(tiny: Experiment) -> None:
    networks = InfoGAN(tiny).train()
    with Model.borrowed(tiny, networks, 0) as trained:
        assert not trained.networks.training
    assert all(module.training for module in networks.modules())


def test_a_run_without_a_checkpoint(tiny: Experiment) -> None:
    RunDirectory.create(Path("run"), tiny, train_config(made_up_images(tiny)))
    with pytest.raises(InputError, match="no checkpoint yet"):
        Model.load(Path("run"), torch.device("cpu"))
