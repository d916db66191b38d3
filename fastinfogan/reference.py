"""InfoGAN in plain torch.nn, eager, fp32: the reference that everything is tested against.

It imports the experiments and the codes and nothing else of the product. Read it top down: the
networks, the loss of each step, one iteration. Source: Chen et al. 2016, Section 5 and Tables 1-6.

Two conventions that the paper leaves open. A step changes the networks it trains and nothing else:
running statistics of batch norm move in a network's own step only. And a bias in front of batch
norm is a constant: its gradient is zero, which rounding turns into noise that Adam would take for
a direction.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastinfogan.experiments import BlockSpec, Experiment
from fastinfogan_kernels.latents import Categorical, Continuous, Latents, LatentSpec


class Flatten(nn.Module):
    """(B, C, H, W) to (B, H * W * C), in the order of TensorFlow's and of channels_last memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten."""
        return x.permute(0, 2, 3, 1).flatten(1)


class Unflatten(nn.Module):
    """(B, H * W * C) to (B, C, H, W), the inverse of `Flatten`."""

    def __init__(self, block: BlockSpec) -> None:
        super().__init__()
        self.shape = (-1, block.height, block.width, block.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Unflatten."""
        return x.view(self.shape).permute(0, 3, 1, 2)


class SameUpconv(nn.ConvTranspose2d):
    """A stride-1 4x4 transposed convolution that is "SAME": the last row and column are dropped."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Transpose and crop."""
        return super().forward(x, output_size)[..., :-1, :-1]


def layers(blocks: tuple[BlockSpec, ...], channels: int, side: int, slope: float) -> nn.Sequential:
    """Build the layers of a table of blocks, for `channels` x side x side (side 0: a row)."""
    parts: list[nn.Module] = []
    for b in blocks:
        if b.kind == "conv":
            padding = "same" if b.stride == 1 else 1
            parts.append(nn.Conv2d(channels, b.channels, b.kernel, b.stride, padding))
            side //= b.stride
        elif b.kind == "upconv":
            kind = SameUpconv if b.stride == 1 else nn.ConvTranspose2d
            parts.append(kind(channels, b.channels, b.kernel, b.stride, 1))
            side *= b.stride
        else:
            parts += [Flatten()] if side else []
            parts.append(nn.Linear(channels * max(side * side, 1), b.features))
            side = 0
        if b.batch_norm:
            norm = nn.BatchNorm1d(b.features) if b.kind == "linear" else nn.BatchNorm2d(b.channels)
            parts.append(norm)
        if b.activation != "none":
            parts.append(
                {
                    "relu": nn.ReLU(),
                    "leaky_relu": nn.LeakyReLU(slope),
                    "sigmoid": nn.Sigmoid(),
                    "tanh": nn.Tanh(),
                }[b.activation]
            )
        if b.height:
            parts.append(Unflatten(b))
            side = b.height
        channels = b.channels
    return nn.Sequential(*parts)


def initialise(network: nn.Sequential, generator: torch.Generator) -> None:
    """Set the released code's initial weights; freeze the biases in front of batch norm."""
    for module, after in zip(network, [*list(network)[1:], None], strict=True):
        if isinstance(module, nn.Conv2d):
            nn.init.trunc_normal_(module.weight, 0.0, 0.02, -0.04, 0.04, generator)
        elif isinstance(module, nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02, generator)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02, generator)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            cancelled = isinstance(after, nn.BatchNorm1d | nn.BatchNorm2d)
            module.bias.requires_grad_(not cancelled)  # type: ignore[union-attr]


def mutual_information(q_output: Tensor, latents: Latents, spec: LatentSpec) -> list[Tensor]:
    """Compute L_I = H(c) + E[log Q(c|x)] of each code, in nats (paper, equation 5)."""
    bounds = []
    place, classes, continuous = 0, iter(latents.classes.T), iter(latents.continuous.T)
    gaussians = len(spec.continuous)
    for code in spec.codes:
        if isinstance(code, Categorical):
            logits = q_output[:, place : place + code.classes]
            target = torch.as_tensor(next(classes))
            log_q = -F.cross_entropy(logits, target, reduction="none")
            place += code.classes
        elif isinstance(code, Continuous):
            raw = q_output[:, place + gaussians]
            deviation = torch.ones_like(raw) if code.deviation == "fixed" else raw.exp()
            if code.deviation == "clipped":
                deviation = deviation.clamp(*code.clip)
            target = torch.as_tensor(next(continuous)).to(raw)
            log_q = torch.distributions.Normal(q_output[:, place], deviation).log_prob(target)  # type: ignore[no-untyped-call]
            place += 1
        bounds.append(code.entropy + log_q.mean())
    return bounds


class Reference:
    """The four networks, their two optimizers and one iteration.

    Args:
        experiment: what to train.
        seed: of the initial weights.
        dtype: of everything computed.
    """

    def __init__(
        self, experiment: Experiment, seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        e = self.experiment = experiment
        spec = e.latents
        side = e.height
        for block in e.trunk:
            side = 0 if block.kind == "linear" else side // block.stride
        last = e.trunk[-1]
        head = (BlockSpec("linear", 1, batch_norm=False, activation="none"),)
        output = BlockSpec("linear", spec.output_width, batch_norm=False, activation="none")
        self.generator = layers(e.generator, spec.input_width, 0, e.slope)
        self.trunk = layers(e.trunk, e.channels, e.height, e.slope)
        self.d_head = layers(head, last.channels, side, e.slope)
        self.q_head = layers((*e.q_head, output), last.channels, side, e.slope)
        source = torch.Generator().manual_seed(seed)
        for network in self.networks:
            initialise(network, source)
            network.to(dtype)
        self.d_parameters = [
            p for n in self.networks[1:] for p in n.parameters() if p.requires_grad
        ]
        self.g_parameters = [p for p in self.generator.parameters() if p.requires_grad]
        betas = (e.beta1, e.beta2)
        self.d_adam = torch.optim.Adam(self.d_parameters, e.learning_rate_d, betas, e.epsilon)
        self.g_adam = torch.optim.Adam(self.g_parameters, e.learning_rate_g, betas, e.epsilon)

    @property
    def networks(self) -> tuple[nn.Sequential, ...]:
        """Generator, trunk, D head, Q head."""
        return (self.generator, self.trunk, self.d_head, self.q_head)

    def generate(self, latents: Latents) -> Tensor:
        """Compute G(z, c)."""
        rows = torch.as_tensor(self.experiment.latents.generator_input(latents))
        return self.generator(rows.to(next(self.generator.parameters()).dtype))  # type: ignore[no-any-return]

    def weighted(self, bounds: list[Tensor]) -> Tensor:
        """Sum lambda * L_I, each kind of code with its own lambda."""
        e = self.experiment
        lambdas = [
            e.lambda_categorical if isinstance(c, Categorical) else e.lambda_continuous
            for c in e.latents.codes
        ]
        return torch.stack([w * b for w, b in zip(lambdas, bounds, strict=True)]).sum()

    def d_step(self, real: Tensor, latents: Latents) -> tuple[Tensor, list[Tensor]]:
        """Update trunk, D head and Q head; real: (B, C, H, W). Returns loss and MI bounds."""
        self._move_statistics(of_generator=False)
        with torch.no_grad():
            fake = self.generate(latents)
        on_real = self.d_head(self.trunk(real))
        features = self.trunk(fake)
        on_fake = self.d_head(features)
        bounds = mutual_information(self.q_head(features), latents, self.experiment.latents)
        loss = (
            F.binary_cross_entropy_with_logits(on_real, torch.ones_like(on_real))
            + F.binary_cross_entropy_with_logits(on_fake, torch.zeros_like(on_fake))
            - self.weighted(bounds)
        )
        self.d_adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.d_adam.step()
        return loss.detach(), bounds

    def g_step(self, latents: Latents) -> tuple[Tensor, list[Tensor]]:
        """Update the generator. Returns loss and MI bounds."""
        self._move_statistics(of_generator=True)
        features = self.trunk(self.generate(latents))
        on_fake = self.d_head(features)
        bounds = mutual_information(self.q_head(features), latents, self.experiment.latents)
        loss = F.binary_cross_entropy_with_logits(
            on_fake, torch.ones_like(on_fake)
        ) - self.weighted(bounds)
        self.g_adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.g_adam.step()
        return loss.detach(), bounds

    def _move_statistics(self, *, of_generator: bool) -> None:
        for network in self.networks:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.track_running_stats = (network is self.generator) == of_generator
