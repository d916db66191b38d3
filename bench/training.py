"""The iteration that training runs, on synthetic images: what is timed, counted and compared."""

from typing import Any

import torch
from torch import Tensor

from fastinfogan.engine import Iteration, TrainConfig
from fastinfogan.engine.config import ComputedIn
from fastinfogan.experiments import Experiment

SEED = 1


def train_config(e: Experiment, precision: ComputedIn, **changes: Any) -> TrainConfig:  # noqa: ANN401
    """Make the configuration of a run without augmentation.

    Args:
        e: with its batch size.
        precision: of the networks.
        changes: further fields of `TrainConfig`.
    """
    fields: dict[str, Any] = {
        "seed": SEED, "batch_size": e.batch_size, "precision": precision, "augmentation": "none",
        "information": "maximise", "data": None, "data_fingerprint": {},
    }  # fmt: skip
    return TrainConfig(**fields | changes)


def images_for(e: Experiment, count: int, device: torch.device) -> Tensor:
    """Make images of bright discs in random places, uint8 (count, height, width, channels)."""
    u = torch.rand((count, 2, 1, 1), generator=torch.Generator().manual_seed(5)) * 1.2 - 0.6
    y, x = (torch.linspace(-1, 1, side) for side in (e.height, e.width))
    distance = torch.hypot(y[None, :, None] - u[:, 0], x[None, None, :] - u[:, 1])
    discs = ((1.5 - 3.0 * distance).clamp(0, 1) * 255).to(torch.uint8)
    return discs[..., None].expand(-1, -1, -1, e.channels).contiguous().to(device)


def iteration_for(e: Experiment, precision: ComputedIn, batch: int, images: Tensor) -> Iteration:
    """Make the iteration that training runs, on the images' device."""
    config = train_config(e, precision, batch_size=batch)
    return Iteration.create(e, config, images, images.device)
