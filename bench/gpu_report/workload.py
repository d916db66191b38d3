"""What stages train: the paper's five, at their sizes, or in a dry run as small as can be."""

from dataclasses import replace
from typing import Any

import torch

from bench.training import images_for, iteration_for, train_config
from fastinfogan import experiments
from fastinfogan.engine import Iteration, TrainConfig, choose_execution
from fastinfogan.engine.config import ComputedIn
from fastinfogan.engine.execution import Execution
from fastinfogan.experiments import BlockSpec, Experiment

FIVE = ("mnist", "svhn", "celeba", "faces", "chairs")
_DRY_DIVISOR, _DRY_BATCH, _DRY_IMAGES = 16, 4, 64


def names(*, dry: bool) -> tuple[str, ...]:
    return FIVE[:1] if dry else FIVE


def experiment(name: str, *, dry: bool, batch: int | None = None) -> Experiment:
    """Return an experiment; in a dry run with narrow layers, of few images."""
    e = experiments.get(name)
    if not dry:
        return replace(e, batch_size=batch or e.batch_size)

    def narrow(blocks: tuple[BlockSpec, ...]) -> tuple[BlockSpec, ...]:
        return tuple(replace(b, channels=max(b.channels // _DRY_DIVISOR, 1)) for b in blocks)

    return replace(
        e,
        batch_size=batch or _DRY_BATCH,
        trunk=narrow(e.trunk),
        q_head=narrow(e.q_head),
        generator=(*narrow(e.generator[:-1]), e.generator[-1]),
    )


def iteration(
    e: Experiment, device: torch.device, precision: ComputedIn = "bf16", *, dry: bool
) -> Iteration:
    """Make an iteration on synthetic images."""
    images = images_for(e, max(_DRY_IMAGES if dry else 4096, 2 * e.batch_size), device)
    return iteration_for(e, precision, e.batch_size, images)


def as_trained(e: Experiment, device: torch.device, *, dry: bool) -> Execution:
    """Make an iteration in the execution mode that training chooses."""
    mode, _ = choose_execution("auto", device)
    return mode(iteration(e, device, dry=dry))


def config(e: Experiment, precision: ComputedIn, **changes: Any) -> TrainConfig:
    """Return the configuration of a run of an experiment as it is."""
    return train_config(e, precision, **{"augmentation": "affine", "log_every": 100} | changes)
