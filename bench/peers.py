"""What the iteration is compared with: InfoGAN in PyTorch, as it is usually written, and at best.

Both are built of the reference's networks and fed what the product feeds itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan import experiments, shuffle
from fastinfogan.data import Source
from fastinfogan.engine import TrainingSettings
from fastinfogan.kernels.draw import by
from fastinfogan.latents import Latents
from fastinfogan.philox import Stream
from fastinfogan.reference import Reference, mutual_information


class UsualLoop:
    """Eager, fp32, PyTorch's default Adam."""

    def __init__(self, settings: TrainingSettings, source: Source) -> None:
        self.reference = Reference(experiments.get("mnist"), settings.seed)
        self.settings = settings
        self.images = torch.from_numpy(source.images).permute(0, 3, 1, 2).float() / 255

    def run(self, step: int) -> list[Tensor]:
        """One iteration; the adversarial losses of its two steps."""
        real, d, g = self.drawn(step)
        weighted = self.reference.weighted
        steps = [self.reference.d_step(real, d), self.reference.g_step(g)]
        return [(loss + weighted(bounds)).detach() for loss, bounds in steps]

    def drawn(self, step: int) -> tuple[Tensor, Latents, Latents]:
        """The step's real images, and the codes of the D step and of the G step."""
        s, spec = self.settings, self.reference.experiment.latents
        index = shuffle.indices(s.seed, step * s.batch_size, s.batch_size, len(self.images))
        d, g = (
            spec.draw(s.seed, step, stream, s.batch_size, by=by())
            for stream in (Stream.D_STEP, Stream.G_STEP)
        )
        return self.images[torch.from_numpy(index)], d, g


class BestLoop(UsualLoop):
    """bf16 autocast, channels_last, fused Adam, no gradient that is not used.

    Args:
        settings: of the product's run.
        source: its images.
        compiled: whether torch.compile makes the forward passes.
    """

    def __init__(self, settings: TrainingSettings, source: Source, *, compiled: bool) -> None:
        super().__init__(settings, source)
        r, e = self.reference, self.reference.experiment
        for network in r.networks:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images = self.images.contiguous(memory_format=torch.channels_last)
        betas = (e.beta1, e.beta2)
        self.d_adam, self.g_adam = (
            torch.optim.Adam(parameters, rate, betas, e.epsilon, fused=True)
            for parameters, rate in (
                (r.d_parameters, e.learning_rate_d), (r.g_parameters, e.learning_rate_g),
            )
        )  # fmt: skip
        self._d_loss, self._g_loss = self.d_loss, self.g_loss
        if compiled:
            self._d_loss, self._g_loss = (
                torch.compile(loss, dynamic=False) for loss in (self.d_loss, self.g_loss)
            )

    def d_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The D step's adversarial loss, and Q's output."""
        r = self.reference
        on_real = r.d_head(r.trunk(real))
        features = r.trunk(fake)
        on_fake = r.d_head(features)
        loss = F.softplus(-on_real.float()).mean() + F.softplus(on_fake.float()).mean()
        return loss, r.q_head(features).float()

    def g_loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The G step's adversarial loss, and Q's output."""
        r = self.reference
        features = r.trunk(r.generator(rows))
        return F.softplus(-r.d_head(features).float()).mean(), r.q_head(features).float()

    def run(self, step: int) -> list[Tensor]:
        """One iteration; the adversarial losses of its two steps."""
        r = self.reference
        spec = r.experiment.latents
        real, d, g = self.drawn(step)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                fake = r.generate(d)
            of_d, q_output = self._d_loss(real, fake)
        loss = of_d - r.weighted(mutual_information(q_output, d, spec))
        loss.backward(inputs=r.d_parameters)
        self.d_adam.step()
        self.d_adam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            of_g, q_output = self._g_loss(torch.from_numpy(spec.generator_input(g)))
        loss = of_g - r.weighted(mutual_information(q_output, g, spec))
        loss.backward(inputs=r.g_parameters)
        self.g_adam.step()
        self.g_adam.zero_grad()
        return [of_d.detach(), of_g.detach()]
