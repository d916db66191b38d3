"""What every test may use: tiny images, tiny networks, a folder of its own, a session's cache."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import triton  # noqa: F401 - in front of the kernels, so that tests can compile them
from hypothesis import settings

from fastinfogan import experiments
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.runtime.launch import interpreted
from tests.helpers.training import made_up_images, narrow_experiment

# The same examples at every run; HYPOTHESIS_PROFILE=search looks for others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# The Triton kernels' suite needs a GPU or Triton's interpreter, which has a process of its own:
# TRITON_INTERPRET=1 python -m pytest tests/triton.
collect_ignore = [] if interpreted() or torch.cuda.is_available() else ["triton"]


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


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    """MNIST's experiment with an eighth of its widths and every kind of code."""
    return replace(narrow_experiment(experiments.get("mnist"), 8), batch_size=8)


@pytest.fixture
def narrow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every experiment at an eighth of its widths; the rest as a user gets it."""
    full = experiments.get
    monkeypatch.setattr(
        "fastinfogan.experiments.get", lambda *arguments: narrow_experiment(full(*arguments), 8)
    )


@pytest.fixture
def digits() -> str:
    """A small labelled set of 28x28 images."""
    source = made_up_images(experiments.get("mnist"))
    np.savez("digits.npz", images=source.images, labels=source.labels)
    return "digits.npz"
