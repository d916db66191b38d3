"""Training loops of InfoGAN in PyTorch, as they are usually written, and at their best.

All are built of the reference's networks. Images lie on the device, scaled, and noise, code and the
choice of images are drawn there by torch's generator: nothing is copied from the host. For checks a
step takes the inputs that fastinfogan draws.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.baselines import BEST, COMPILED, CUDAGRAPHS, EAGER
from bench.baselines.ops import Codes, draw_codes, log_likelihoods, losses
from fastinfogan.experiments import Experiment
from fastinfogan.reference import Reference
from fastinfogan_kernels import shuffle
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
    index = shuffle.indices(seed, step * batch, batch, len(images))
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
        self.device, self.dtype = images.device, dtype
        self._batch = batch
        reference = Reference(e, seed)
        self.networks: tuple[nn.Module, ...] = tuple(
            network.to(images.device, dtype) for network in reference.networks
        )
        self.generator, self.trunk, self.d_head, self.q_head = self.networks
        self._images = scale(images, e).to(dtype)
        self.d_parameters, self.g_parameters = reference.d_parameters, reference.g_parameters
        self.d_adam = self._adam(self.d_parameters, e.learning_rate_d)
        self.g_adam = self._adam(self.g_parameters, e.learning_rate_g)
        row = {"device": self.device, "dtype": torch.promote_types(dtype, torch.float32)}
        self._entropies = torch.tensor(e.latents.entropies, **row)  # type: ignore[arg-type]
        self._lambdas = torch.tensor(e.lambdas, **row)  # type: ignore[arg-type]

    def _adam(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
        e = self.experiment
        return torch.optim.Adam(parameters, rate, (e.beta1, e.beta2), e.epsilon)

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
        real, d, g = (self._cast(part) for part in inputs)
        of_d, _ = self._d_step(real, *d)
        of_g, bounds = self._g_step(*g)
        return torch.cat([of_d[None], of_g[None], bounds]).detach()

    def _cast(self, part: Tensor | Codes) -> Tensor | Codes:
        if isinstance(part, Tensor):
            return part.to(self.dtype)
        return part._replace(rows=part.rows.to(self.dtype))

    def _d_step(self, real: Tensor, *codes: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            fake = self.generator(codes[0])
        loss, adversarial, bounds = self.d_loss(real, fake, *codes[1:])
        self.d_adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.d_adam.step()
        return adversarial, bounds

    def _g_step(self, *codes: Tensor) -> tuple[Tensor, Tensor]:
        loss, adversarial, bounds = self.g_loss(*codes)
        self.g_adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.g_adam.step()
        return adversarial, bounds

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
        self, logits: Tensor, targets: tuple[int, ...], output: Tensor, *codes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.experiment.latents
        adversarial = losses(logits, targets).sum()
        bounds = self._entropies + log_likelihoods(output, *codes, spec)
        return adversarial - (self._lambdas * bounds).sum(), adversarial, bounds


class BestLoop(UsualLoop):
    """Autocast to 16 bits if asked for, channels_last, fused Adam, no gradient that is not used.

    Args:
        experiment: what is trained.
        images: uint8 (N, height, width, channels) on the device.
        batch: images in a step.
        seed: of the initial weights.
        computed: of autocast; fp32 for none.
        compiled: whether torch.compile compiles the forward passes, and so the backward ones.
        capturable: whether Adam's step counters are on the device, as CUDA graphs need them.
    """

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
        self._capturable = capturable
        super().__init__(experiment, images, batch, seed=seed)
        for network in self.networks:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._computed = computed
        self._generate, self._d_loss, self._g_loss = self.generator, self.d_loss, self.g_loss
        if compiled:
            self._generate, self._d_loss, self._g_loss = (
                torch.compile(each, dynamic=False)
                for each in (self.generator, self.d_loss, self.g_loss)
            )

    def _adam(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
        e = self.experiment
        return torch.optim.Adam(
            parameters, rate, (e.beta1, e.beta2), e.epsilon, fused=True, capturable=self._capturable
        )

    def _autocast(self) -> torch.autocast:
        on = self._computed != torch.float32
        return torch.autocast(self.device.type, self._computed if on else None, enabled=on)

    def _d_step(self, real: Tensor, *codes: Tensor) -> tuple[Tensor, Tensor]:
        real = real.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            with torch.no_grad():
                fake = self._generate(codes[0])
            loss, adversarial, bounds = self._d_loss(real, fake, *codes[1:])
        loss.backward(inputs=self.d_parameters)
        self.d_adam.step()
        self.d_adam.zero_grad()
        return adversarial, bounds

    def _g_step(self, *codes: Tensor) -> tuple[Tensor, Tensor]:
        with self._autocast():
            loss, adversarial, bounds = self._g_loss(*codes)
        loss.backward(inputs=self.g_parameters)
        self.g_adam.step()
        self.g_adam.zero_grad()
        return adversarial, bounds


class CapturedLoop(BestLoop):
    """The compiled loop as one CUDA graph, random numbers and Adam in it; a GPU's alone.

    Args:
        experiment: what is trained.
        images: uint8 (N, height, width, channels) on the GPU.
        batch: images in a step.
        seed: of the initial weights.
        computed: of autocast.
    """

    def __init__(
        self,
        experiment: Experiment,
        images: Tensor,
        batch: int,
        *,
        seed: int = 1,
        computed: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(
            experiment, images, batch, seed=seed, computed=computed, compiled=True, capturable=True
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
        """Run one iteration: a replay."""
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
