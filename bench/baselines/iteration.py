"""Training loops of InfoGAN in PyTorch, as they are usually written, and at their best.

All are built of the reference's networks. Images lie on the device, scaled, and noise, code and the
choice of images are drawn there by torch's generator: nothing is copied from the host. For checks a
step takes the inputs that fastinfogan draws.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.baselines import BEST, COMPILED, CUDAGRAPHS, EAGER
from bench.baselines.ops import Codes, draw_codes, log_likelihoods, losses
from fastinfogan.experiments import Experiment
from fastinfogan.reference import Reference
from fastinfogan_kernels import philox
from fastinfogan_kernels.inputs.draw import random_functions
from fastinfogan_kernels.philox import Stream

_WARM_UP = 3


class Inputs(NamedTuple):
    """Inputs of an iteration.

    Attributes:
        real: (B, C, H, W), in the range of G's images.
        d: noise and code of the D step.
        g: of the G step.
    """

    real: Tensor
    d: Codes
    g: Codes


def inputs_of(experiment: Experiment, images: Tensor, seed: int, step: int, batch: int) -> Inputs:
    """Draw fastinfogan's inputs of an iteration, by the definitions, on the host.

    Args:
        experiment: codes and range.
        images: uint8 (N, height, width, channels).
        seed: the run's.
        step: the iteration's number.
        batch: real images in it.
    """
    spec, device = experiment.latents, images.device
    index = philox.shuffled_indices(seed, step * batch, batch, len(images))
    found = []
    for stream in (Stream.D_STEP, Stream.G_STEP):
        drawn = spec.draw(seed, step, stream, batch, functions=random_functions())
        arrays = (spec.generator_input(drawn), drawn.classes, drawn.continuous)
        found.append(Codes(*(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays)))
    chosen = images[torch.from_numpy(index).to(device)]
    return Inputs(scale(chosen, experiment), *found)


def scale(images: Tensor, experiment: Experiment) -> Tensor:
    """Scale uint8 (N, height, width, channels) to the range of G's images: fp32 (N, C, H, W)."""
    low, high = experiment.image_range
    return images.permute(0, 3, 1, 2).float().contiguous() / 255 * (high - low) + low


class UsualLoop:
    """Eager, NCHW, torch's default Adam.

    Args:
        experiment: what is trained.
        images: uint8 (N, height, width, channels) on the device.
        batch: images in a step.
        seed: of the initial weights.
        dtype: of everything; fp64 is the truth that others are compared with.

    Attributes:
        networks: generator, trunk, D head, Q head.
        d_adam: of the D step.
        g_adam: of the G step.
    """

    memory_format = torch.contiguous_format

    def __init__(
        self,
        experiment: Experiment,
        images: Tensor,
        batch: int,
        *,
        seed: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.experiment = e = experiment
        self.device, self.dtype, self._batch = images.device, dtype, batch
        reference = Reference(e, seed)
        for network in reference.networks:
            network.to(images.device, dtype)
            network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.networks: tuple[nn.Module, ...] = tuple(reference.networks)
        self.generator, self.trunk, self.d_head, self.q_head = self.networks
        self._images = scale(images, e).to(dtype, memory_format=self.memory_format)
        self.d_adam = self._adam(reference.d_parameters, e.learning_rate_d)
        self.g_adam = self._adam(reference.g_parameters, e.learning_rate_g)
        wide = torch.promote_types(dtype, torch.float32)
        self._entropies, self._lambdas = (
            torch.tensor(values, device=self.device, dtype=wide)
            for values in (e.latents.entropies, e.lambdas)
        )

    def _adam(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
        e = self.experiment
        return torch.optim.Adam(parameters, rate, (e.beta1, e.beta2), e.epsilon)

    def _autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _update(self, loss: Tensor, adam: torch.optim.Adam) -> None:
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()

    def drawn(self) -> Inputs:
        """Draw a step's images, noise and code by torch's generator."""
        spec = self.experiment.latents
        index = torch.randint(len(self._images), (self._batch,), device=self.device)
        codes = [draw_codes(spec, self._batch, self.device, self.dtype) for _ in range(2)]
        return Inputs(self._images[index], *codes)

    def run(self) -> None:
        """Run one iteration on inputs drawn here."""
        self.iterate(self.drawn())

    def iterate(self, inputs: Inputs) -> Tensor:
        """Run one iteration.

        Returns:
            The adversarial losses of the D step and of the G step, and the G step's bound for each
            code, in nats.
        """
        real = inputs.real.to(self.dtype).contiguous(memory_format=self.memory_format)
        d, g = (codes._replace(rows=codes.rows.to(self.dtype)) for codes in inputs[1:])
        with self._autocast():
            with torch.no_grad():
                fake = self.generate(d.rows)
            loss, of_d, _ = self.d_loss(real, fake, d.classes, d.continuous)
        self._update(loss, self.d_adam)
        with self._autocast():
            loss, of_g, bounds = self.g_loss(*g)
        self._update(loss, self.g_adam)
        return torch.cat([of_d[None], of_g[None], bounds]).detach()

    def generate(self, rows: Tensor) -> Tensor:
        images: Tensor = self.generator(rows)
        return images

    def d_loss(
        self, real: Tensor, fake: Tensor, classes: Tensor, continuous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the D step's loss, its adversarial part, and the bound for each code."""
        on_real = self.d_head(self.trunk(real))
        features = self.trunk(fake)
        logits = torch.cat([on_real, self.d_head(features)])
        return self._loss(logits, (1, 0), self.q_head(features), classes, continuous)

    def g_loss(
        self, rows: Tensor, classes: Tensor, continuous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the G step's; see `d_loss`."""
        features = self.trunk(self.generator(rows))
        logits = self.d_head(features)
        return self._loss(logits, (1,), self.q_head(features), classes, continuous)

    def _loss(
        self,
        logits: Tensor,
        targets: tuple[int, ...],
        output: Tensor,
        classes: Tensor,
        continuous: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        adversarial = losses(logits, targets).sum()
        likelihoods = log_likelihoods(output, classes, continuous, self.experiment.latents)
        bounds = self._entropies + likelihoods
        return adversarial - (self._lambdas * bounds).sum(), adversarial, bounds


class BestLoop(UsualLoop):
    """Autocast to 16 bits if asked for, channels_last, fused Adam, no gradient that is not used.

    Args:
        experiment, images, batch, seed: as for `UsualLoop`.
        computed: of autocast; fp32 for none.
        compiled: whether torch.compile compiles the forward passes, and so the backward ones.
        capturable: whether Adam's step counters are on the device, as CUDA graphs need them.
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        experiment: Experiment,
        images: Tensor,
        batch: int,
        *,
        seed: int = 1,
        computed: torch.dtype = torch.bfloat16,
        compiled: bool = False,
        capturable: bool = False,
    ) -> None:
        self._computed, self._capturable = computed, capturable
        super().__init__(experiment, images, batch, seed=seed)
        if compiled:
            for name in ("generate", "d_loss", "g_loss"):
                setattr(self, name, torch.compile(getattr(self, name), dynamic=False))

    def _adam(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
        e = self.experiment
        return torch.optim.Adam(
            parameters, rate, (e.beta1, e.beta2), e.epsilon, fused=True, capturable=self._capturable
        )

    def _autocast(self) -> AbstractContextManager[None]:
        on = self._computed != torch.float32
        return torch.autocast(self.device.type, self._computed if on else None, enabled=on)

    def _update(self, loss: Tensor, adam: torch.optim.Adam) -> None:
        loss.backward(inputs=adam.param_groups[0]["params"])  # type: ignore[no-untyped-call]
        adam.step()
        adam.zero_grad()


class CapturedLoop(BestLoop):
    """The compiled loop as one CUDA graph, random numbers and Adam in it; a GPU's alone."""

    def __init__(
        self, experiment: Experiment, images: Tensor, batch: int, *, computed: torch.dtype
    ) -> None:
        super().__init__(
            experiment, images, batch, computed=computed, compiled=True, capturable=True
        )
        # Warm up and capture on one stream: autograd runs a parameter's gradient where it first
        # saw it, and a graph must not wait for another stream.
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                super().run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            super().run()

    def run(self) -> None:
        self._graph.replay()


def loop(
    name: str, experiment: Experiment, images: Tensor, batch: int, computed: torch.dtype
) -> UsualLoop:
    """Make a baseline by its name, see `bench.baselines`.

    Args:
        name: "eager", "best", "compiled" or "cudagraphs".
        experiment: what is trained.
        images: uint8 (N, height, width, channels) on the device.
        batch: images in a step.
        computed: of autocast, where the baseline has any.
    """
    if name == EAGER:
        return UsualLoop(experiment, images, batch)
    if name == CUDAGRAPHS:
        return CapturedLoop(experiment, images, batch, computed=computed)
    assert name in (BEST, COMPILED)
    return BestLoop(experiment, images, batch, computed=computed, compiled=name == COMPILED)
