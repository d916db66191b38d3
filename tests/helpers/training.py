"""Small experiments, images and iterations for tests, and a command line that fails."""

import errno
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from fastinfogan.data import ImageSet
from fastinfogan.distributed import SINGLE_PROCESS, Distributed
from fastinfogan.engine import Iteration, TrainConfig, Trainer
from fastinfogan.experiments import BlockSpec, Experiment
from fastinfogan_kernels import philox
from fastinfogan_kernels.runtime.launch import Implementation

QUICK = ["--batch-size", "4", "--precision", "fp32"]


def narrow_experiment(experiment: Experiment, divisor: int) -> Experiment:
    """The same experiment with every hidden width divided."""

    def narrow(blocks: tuple[BlockSpec, ...]) -> tuple[BlockSpec, ...]:
        return tuple(replace(b, channels=max(b.channels // divisor, 1)) for b in blocks)

    return replace(
        experiment,
        trunk=narrow(experiment.trunk),
        q_head=narrow(experiment.q_head),
        generator=(*narrow(experiment.generator[:-1]), experiment.generator[-1]),
    )


def made_up_images(experiment: Experiment, count: int = 64, seed: int = 5) -> ImageSet:
    """Bright discs in random places: images with something to learn in them, and four labels."""
    u = philox.uniform(philox.words(seed, 0, 0, count, 3))
    rows, columns = np.mgrid[: experiment.height, : experiment.width]
    y = (rows / experiment.height * 2 - 1)[None] - u[:, 0, None, None] * 0.6
    x = (columns / experiment.width * 2 - 1)[None] - u[:, 1, None, None] * 0.6
    disc = np.clip(1.5 - 3.0 * np.hypot(x, y), 0, 1) * 255
    images = np.repeat(disc[..., None], experiment.channels, axis=-1).astype(np.uint8)
    labels = (u[:, 0] > 0).astype(np.int64) * 2 + (u[:, 1] > 0)
    return ImageSet("synthetic images", images, labels)


def train_config(source: ImageSet, **settings: Any) -> TrainConfig:  # noqa: ANN401
    """Settings as the tests need them, fields of `TrainConfig` changed."""
    default = TrainConfig(3, 8, "fp32", "none", "maximise", None, source.fingerprint)
    return replace(default, **settings)


def make_iteration(
    experiment: Experiment,
    *,
    device: str = "cpu",
    impl: Implementation = "auto",
    distributed: Distributed = SINGLE_PROCESS,
    **settings: Any,  # noqa: ANN401
) -> Iteration:
    """The product's iteration on synthetic images; settings are fields of `TrainConfig`."""
    source = made_up_images(experiment)
    config = train_config(source, ranks=distributed.world_size, **settings)
    return Iteration.create(
        experiment, config, source.images, device, impl=impl, distributed=distributed
    )


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


def fails(
    *arguments: str,
    capsys: pytest.CaptureFixture[str],
    command: Callable[[Sequence[str]], int] | None = None,
) -> str:
    """Run a command that must fail, the CLI if none is given; its one line."""
    if command is None:
        from fastinfogan.cli import main as command  # needs tyro, which tests of kernels do without

    capsys.readouterr()
    assert command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fastinfogan: ")
    return captured.err


def full(*_: object) -> NoReturn:
    """Stand in for what writes, on a disk without space."""
    raise OSError(errno.ENOSPC, "No space left on device")


def prints(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command of the CLI that must succeed; what it prints, with single spaces."""
    from fastinfogan.cli import main

    capsys.readouterr()
    assert main(arguments) == 0
    return " ".join(capsys.readouterr().out.split())


def digest(trainer: Trainer) -> str:
    """SHA-256 of every tensor of the state and its name."""
    sha = hashlib.sha256(str(trainer.step).encode())
    for kind, tensors in trainer.iteration.state().items():
        for name, tensor in tensors.items():
            sha.update(f"{kind}/{name}".encode())
            sha.update(tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()
