"""Use a run's networks: in evaluation mode, fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fastinfogan.data.transforms import to_bytes, to_network
from fastinfogan.engine.run_directory import RunDirectory
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan_kernels.inputs.draw import DrawnCodes, to_tensors
from fastinfogan_kernels.latents import Latents

_ROWS = 512  # per forward pass: bounds memory, changes no number in evaluation mode


class Model:
    """An experiment's networks in evaluation mode.

    Args:
        experiment: what was trained.
        networks: its networks, in evaluation mode.
        iteration: how many iterations they have seen.
    """

    def __init__(self, experiment: Experiment, networks: InfoGAN, iteration: int) -> None:
        self.experiment = experiment
        self.networks = networks
        self.iteration = iteration

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> "Model":
        """Read the newest checkpoint of a run.

        Raises:
            InputError: no run, no checkpoint, a damaged one, or one of another experiment.
        """
        run = RunDirectory.open(Path(path))
        saved = run.read_checkpoint()
        networks = InfoGAN(run.experiment)
        saved.fit("weights", dict(networks.state_dict()))
        return cls(run.experiment, networks.to(device).eval(), saved.iteration)

    @classmethod
    @contextmanager
    def borrowed(
        cls, experiment: Experiment, networks: InfoGAN, iteration: int
    ) -> Iterator["Model"]:
        """Use networks in the middle of training; they are left in training mode."""
        networks.eval()
        try:
            yield cls(experiment, networks, iteration)
        finally:
            networks.train()

    @property
    def device(self) -> torch.device:
        """The networks' device."""
        return next(self.networks.parameters()).device

    @torch.no_grad()
    def generate(self, latents: Latents) -> Tensor:
        """Generate images from noise and codes: uint8 (B, height, width, channels), on the CPU."""
        rows = to_tensors(latents, self.experiment.latents, self.device).generator_input
        images = torch.cat([self.networks.generator(part) for part in torch.split(rows, _ROWS)])
        return to_bytes(images, self.experiment.image_range).cpu()

    @torch.no_grad()
    def read_generated(self, codes: DrawnCodes) -> Tensor:
        """Return Q's raw output, (B, output_width), on the images generated from these codes."""
        n = self.networks
        return torch.cat(
            [
                n.q_head(n.trunk(n.generator(part)))
                for part in torch.split(codes.generator_input, _ROWS)
            ]
        )

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Return Q's raw output, (B, output_width), on uint8 (B, height, width, channels)."""
        n, dtype = self.networks, torch.float32
        outputs = []
        for part in torch.split(images, _ROWS):
            scaled = to_network(part.to(self.device), self.experiment.image_range, dtype)
            outputs.append(n.q_head(n.trunk(scaled)))
        return torch.cat(outputs)
