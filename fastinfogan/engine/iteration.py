"""One iteration: a D step, which trains trunk, D head and Q head, then a G step.

Nothing here waits for the device: losses are summed there and read every so many iterations.
Everything random is drawn from (seed, step), so an iteration is a function of the state before it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastinfogan.data import EpochOrder
from fastinfogan.data.augment import affine_matrices
from fastinfogan.engine.images import to_network
from fastinfogan.engine.precision import BF16, FP32, FP64
from fastinfogan.engine.settings import TrainingSettings
from fastinfogan.experiments import Experiment
from fastinfogan.kernels.draw import DrawnCodes, draw_codes
from fastinfogan.networks import InfoGAN
from fastinfogan.nn import statistics_frozen
from fastinfogan.objective import InformationBound, MutualInformation, d_loss, g_loss
from fastinfogan.philox import Stream

_PRECISIONS = {p.name: p for p in (FP64, FP32, BF16)}


class Iteration:
    """The two steps, their optimizers and the sums of what they measured.

    Args:
        experiment: what is trained.
        settings: how.
        networks: on the device, in training mode; trained in place.
        images: uint8 (N, height, width, channels) on the same device; real images are gathered
            from it and scaled there.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: TrainingSettings,
        networks: InfoGAN,
        images: Tensor,
    ) -> None:
        e = experiment
        self.experiment = e
        self.settings = settings
        self.networks = networks
        self.device = images.device
        self.precision = _PRECISIONS[settings.precision]
        self._images = images
        self._order = EpochOrder(len(images), settings.batch_size, settings.seed)
        dtype = self.precision.dtype
        self._information = InformationBound(e, self.device, dtype)
        self._d_parameters = [p for _, p in networks.d_parameters()]
        self._g_parameters = [p for _, p in networks.g_parameters()]
        betas = (e.beta1, e.beta2)
        self.d_adam = torch.optim.Adam(
            self._d_parameters, e.learning_rate_d, betas, e.epsilon, fused=True
        )
        self.g_adam = torch.optim.Adam(
            self._g_parameters, e.learning_rate_g, betas, e.epsilon, fused=True
        )
        _make_state(self.d_adam, self._d_parameters)
        _make_state(self.g_adam, self._g_parameters)
        # d_loss, g_loss, then the G step's bound for each code.
        self.sums = torch.zeros(2 + len(e.latents.codes), dtype=dtype, device=self.device)
        self.summed = 0

    def run(self, step: int) -> None:
        """Run iteration number `step`, counted from 0."""
        measured_d, _ = self.d_step(self.real_images(step), self._draw(step, Stream.D_STEP))
        measured_g, information = self.g_step(self._draw(step, Stream.G_STEP))
        self.sums += torch.cat([torch.stack([measured_d, measured_g]), information.bounds.detach()])
        self.summed += 1

    def read(self) -> dict[str, float]:
        """Means since the last read, and start over. Waits for the device.

        Returns:
            d_loss and g_loss (the adversarial parts, without lambda * MI), and in nats mi_bound
            and its parts: mi_categorical, mi_continuous, mi_c1, mi_c2, ..., of the G step's images.
        """
        spec = self.experiment.latents
        means = (self.sums / max(self.summed, 1)).tolist()
        self.sums.zero_()
        self.summed = 0
        bounds = means[2:]
        categorical = len(spec.categorical)
        return {
            "d_loss": means[0],
            "g_loss": means[1],
            "mi_bound": sum(bounds),
            "mi_categorical": sum(bounds[:categorical]),
            "mi_continuous": sum(bounds[categorical:]),
            **{f"mi_{name}": bound for name, bound in zip(spec.names, bounds, strict=True)},
        }

    def real_images(self, step: int) -> Tensor:
        """An iteration's real images: (B, C, H, W), channels_last, in the experiment's range."""
        s, dtype = self.settings, self.precision.dtype
        index = torch.from_numpy(self._order.indices(step)).to(self.device, non_blocking=True)
        images, matrices = self._images.index_select(0, index), None
        if s.augmentation == "affine":
            drawn = affine_matrices(s.seed, step, s.batch_size, *images.shape[1:3])
            matrices = torch.from_numpy(drawn).to(self.device, dtype, non_blocking=True)
        return to_network(images, self.experiment.image_range, dtype, matrices)

    def d_step(self, real: Tensor, codes: DrawnCodes) -> tuple[Tensor, MutualInformation]:
        """Update trunk, D head and Q head.

        Args:
            real: (B, C, H, W) real images.
            codes: B rows of noise and code.

        Returns:
            The adversarial loss, and the bound on the images generated.
        """
        n = self.networks
        with (
            torch.no_grad(),
            statistics_frozen(n.generator),
            self.precision.autocast(self.device),
        ):
            fake = n.generator(codes.generator_input)
        # A context of its own: autocast remembers casts, and those above carry no gradient.
        with self.precision.autocast(self.device):
            features = n.trunk(torch.cat([real.to(fake.dtype), fake]), groups=2)
            on_real, on_fake = n.d_head(features).chunk(2)
            q_output = n.q_head(features.chunk(2)[1])
        information = self._information(q_output, codes.classes, codes.continuous)
        loss = d_loss(on_real, on_fake)
        self._update(loss - information.weighted, self._d_parameters, self.d_adam)
        return loss.detach(), information

    def g_step(self, codes: DrawnCodes) -> tuple[Tensor, MutualInformation]:
        """Update the generator.

        Args:
            codes: B rows of noise and code, other ones than the D step's.

        Returns:
            The adversarial loss, and the bound on the images generated.
        """
        n = self.networks
        with (
            statistics_frozen(n.trunk, n.d_head, n.q_head),
            self.precision.autocast(self.device),
        ):
            features = n.trunk(n.generator(codes.generator_input))
            on_fake, q_output = n.d_head(features), n.q_head(features)
        information = self._information(q_output, codes.classes, codes.continuous)
        loss = g_loss(on_fake)
        maximise = self.settings.information == "maximise"
        objective = loss - information.weighted if maximise else loss
        self._update(objective, self._g_parameters, self.g_adam)
        return loss.detach(), information

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of the state, by kind and name; they are the live ones, not copies."""
        optimizer: dict[str, Tensor] = {}
        for adam, named in (
            (self.d_adam, self.networks.d_parameters()),
            (self.g_adam, self.networks.g_parameters()),
        ):
            for name, parameter in named:
                moments = adam.state[parameter]
                optimizer |= {f"{name}.{key}": value for key, value in moments.items()}
        return {
            "weights": dict(self.networks.state_dict()),
            "optimizer": optimizer,
            "metrics": {"sums": self.sums},
        }

    def _draw(self, step: int, stream: Stream) -> DrawnCodes:
        return draw_codes(
            self.experiment.latents,
            self.settings.seed,
            step,
            stream,
            self.settings.batch_size,
            device=self.device,
            dtype=self.precision.dtype,
        )

    @staticmethod
    def _update(loss: Tensor, parameters: Sequence[Tensor], adam: torch.optim.Adam) -> None:
        # `inputs` spares the other networks' weight gradients, 8 % of an iteration.
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        adam.step()
        adam.zero_grad(set_to_none=True)


def _make_state(adam: torch.optim.Adam, parameters: Sequence[Tensor]) -> None:
    """Give Adam the state that it would make at its first step: a checkpoint may be earlier."""
    for parameter in parameters:
        adam.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
