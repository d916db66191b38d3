"""One MNIST iteration at batch 128: the product against the eager fp32 reference."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pairs import Interleaved
from torch import Tensor

from fastinfogan import experiments, shuffle
from fastinfogan.data import Source, open_source
from fastinfogan.engine import Iteration, TrainingSettings, choose_precision
from fastinfogan.engine.environment import cpu_model
from fastinfogan.engine.precision import ComputedIn
from fastinfogan.kernels.draw import by
from fastinfogan.networks import InfoGAN
from fastinfogan.philox import Stream
from fastinfogan.reference import Reference

AIM = 0.55  # of the reference's time, on a CPU that multiplies bf16
ROUNDS = 12
CPU = torch.device("cpu")


class ReferenceLoop:
    """The reference fed with the images and codes that the product gives itself."""

    def __init__(self, settings: TrainingSettings, source: Source) -> None:
        self.reference = Reference(experiments.get("mnist"), settings.seed)
        self.settings = settings
        self.images = torch.from_numpy(source.images).permute(0, 3, 1, 2).float() / 255

    def run(self, step: int) -> list[Tensor]:
        """One iteration; the adversarial losses of its two steps."""
        s = self.settings
        spec = self.reference.experiment.latents
        rows = s.batch_size
        index = shuffle.indices(s.seed, step * rows, rows, len(self.images))
        real = self.images[torch.from_numpy(index)]
        d, g = (
            spec.draw(s.seed, step, stream, s.batch_size, by=by())
            for stream in (Stream.D_STEP, Stream.G_STEP)
        )
        steps = [self.reference.d_step(real, d), self.reference.g_step(g)]
        return [(loss + self.reference.weighted(bounds)).detach() for loss, bounds in steps]


def make_both(precision: ComputedIn) -> tuple[Iteration, ReferenceLoop]:
    experiment = experiments.get("mnist")
    source = open_source(None, experiment)
    settings = TrainingSettings(
        seed=1,
        batch_size=experiment.batch_size,
        precision=precision,
        augmentation="none",
        information="maximise",
        data=None,
        data_fingerprint=source.fingerprint,
    )
    networks = InfoGAN(experiment, settings.seed)
    ours = Iteration(experiment, settings, networks, torch.from_numpy(source.images))
    return ours, ReferenceLoop(settings, source)


def check_parity(ours: Iteration, loop: ReferenceLoop) -> None:
    """Losses of the first iteration must agree before anything is timed."""
    expected = [loss.item() for loss in loop.run(0)]
    ours.run(0)
    found = ours.read()
    tolerance = 0.02 if ours.settings.precision == "bf16" else 1e-3
    np.testing.assert_allclose([found["d_loss"], found["g_loss"]], expected, atol=tolerance)


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.benchmark(group="iteration")
def test_mnist_iteration(benchmark: Any, report: list[str], precision: str) -> None:  # noqa: ANN401
    chosen, why = choose_precision(precision, CPU)
    if precision == "auto" and chosen.name == "fp32":
        report.append(f"mnist, batch 128, bf16: not measured, {why}")
        pytest.skip(why)
    ours, loop = make_both(chosen.name)
    check_parity(ours, loop)
    step = iter(range(1, 10_000))
    pair = Interleaved(lambda: ours.run(next(step)), lambda: loop.run(next(step)))
    pair()  # the first round pays for what is set up once
    pair.times.clear()
    benchmark.pedantic(pair, rounds=ROUNDS)
    times = pair.times
    low, high = times.quartiles
    benchmark.extra_info |= {
        "ours": times.ours,
        "reference": times.peer,
        "ratio": times.ratio,
        "quartiles": [low, high],
        "cpu": cpu_model(),
        "precision": chosen.name,
    }
    report.append(
        f"mnist, batch 128, {chosen.name} ({why}): {times.ratio:.3f} of the reference's fp32 time, "
        f"quartiles {low:.3f} to {high:.3f}, {len(times.ours)} rounds, {cpu_model()}, "
        f"{torch.get_num_threads()} threads"
    )
    if precision == "auto" and times.ratio > AIM:
        warnings.warn(f"{times.ratio:.3f} of the reference's time; the aim is {AIM}", stacklevel=1)
