"""What every test may use: tiny images, tiny networks, a folder of its own, a session's cache."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from fastinfogan import experiments, philox
from fastinfogan.cli import main
from fastinfogan.data import Source
from fastinfogan.engine import Iteration, TrainingSettings
from fastinfogan.engine.precision import ComputedIn
from fastinfogan.engine.ranks import ALONE, Ranks
from fastinfogan.engine.settings import BatchNorm, Information
from fastinfogan.experiments import Block, Experiment
from fastinfogan.kernels.backend import Implementation
from fastinfogan.kernels.real_images import Augmentation
from fastinfogan.networks import InfoGAN

QUICK = ["--batch-size", "4", "--precision", "fp32"]

# The same examples at every run; HYPOTHESIS_PROFILE=search looks for others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Kernels are interpreted in a process of their own, TRITON_INTERPRET=1 python -m pytest
# tests/interpreter: a process under the interpreter cannot compile, and others cannot interpret.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreter"]


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests and the processes that they start share a cache that goes with the session."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs land in a folder of the test's own, not in the tree."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def narrowed(experiment: Experiment, divisor: int) -> Experiment:
    """The same experiment with every hidden width divided."""

    def narrow(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        return tuple(replace(b, channels=max(b.channels // divisor, 1)) for b in blocks)

    return replace(
        experiment,
        trunk=narrow(experiment.trunk),
        q_head=narrow(experiment.q_head),
        generator=(*narrow(experiment.generator[:-1]), experiment.generator[-1]),
    )


def made_up_images(experiment: Experiment, count: int = 64, seed: int = 5) -> Source:
    """Bright discs in random places: images with something to learn in them, and four labels."""
    u = philox.uniform(philox.words(seed, 0, 0, count, 3))
    rows, columns = np.mgrid[: experiment.height, : experiment.width]
    y = (rows / experiment.height * 2 - 1)[None] - u[:, 0, None, None] * 0.6
    x = (columns / experiment.width * 2 - 1)[None] - u[:, 1, None, None] * 0.6
    disc = np.clip(1.5 - 3.0 * np.hypot(x, y), 0, 1) * 255
    images = np.repeat(disc[..., None], experiment.channels, axis=-1).astype(np.uint8)
    labels = (u[:, 0] > 0).astype(np.int64) * 2 + (u[:, 1] > 0)
    return Source("made-up images", images, labels)


def settings_of(
    source: Source,
    *,
    seed: int = 3,
    batch_size: int = 8,
    precision: ComputedIn = "fp32",
    log_every: int = 10,
    augmentation: Augmentation = "none",
    information: Information = "maximise",
) -> TrainingSettings:
    """Settings as the tests need them."""
    return TrainingSettings(
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        augmentation=augmentation,
        information=information,
        data=None,
        data_fingerprint=source.fingerprint,
        log_every=log_every,
    )


def make_iteration(
    experiment: Experiment,
    *,
    seed: int = 3,
    batch_size: int = 8,
    precision: ComputedIn = "fp32",
    augmentation: Augmentation = "none",
    information: Information = "maximise",
    device: str = "cpu",
    impl: Implementation = "auto",
    ranks: Ranks = ALONE,
    batch_norm: BatchNorm = "synchronised",
) -> Iteration:
    """The product's iteration on made-up images."""
    source = made_up_images(experiment)
    settings = settings_of(
        source,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        augmentation=augmentation,
        information=information,
    )
    networks = InfoGAN(experiment, seed)
    if precision == "fp64":
        networks = networks.double()
    settings = replace(settings, batch_norm=batch_norm, ranks=ranks.count)
    images = torch.from_numpy(source.images).to(device)
    return Iteration(experiment, settings, networks.to(device), images, impl, ranks)


def watch_gradients(
    iteration: Iteration, keep: Callable[[str, Sequence[torch.Tensor]], object]
) -> None:
    """Hand each step's gradients, "D" or "G", to `keep` before they are used."""
    for step in ("D", "G"):
        name = f"_{step.lower()}_update"
        update = getattr(iteration, name)

        def watched(
            gradients: Sequence[torch.Tensor],
            step: str = step,
            update: Any = update,  # noqa: ANN401
        ) -> None:
            keep(step, gradients)
            update(gradients)

        setattr(iteration, name, watched)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    """MNIST's experiment with an eighth of its widths and every kind of code."""
    return replace(narrowed(experiments.get("mnist"), 8), batch_size=8)


@pytest.fixture
def narrow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every experiment at an eighth of its widths; the rest as a user gets it."""
    full = experiments.get
    monkeypatch.setattr(
        "fastinfogan.experiments.get", lambda *arguments: narrowed(full(*arguments), 8)
    )


@pytest.fixture
def digits() -> str:
    """A small labelled set of 28x28 images."""
    source = made_up_images(experiments.get("mnist"))
    np.savez("digits.npz", images=source.images, labels=source.labels)
    return "digits.npz"


def fails(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; its one line."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fastinfogan: ")
    return captured.err
