"""One iteration: a D step, which trains trunk, D head and Q head, then a G step.

A fixed program without autograd: each network's forward and backward pass is written out
(`network_step`), the objective gives its gradient with its value, Adam rounds the weights into the
working copies that the networks compute with. Nothing here waits for the device: losses are summed
there and read once per line of metrics. Everything random is drawn from (seed, step), so an
iteration is a function of the state before it.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastinfogan.distributed import SINGLE_PROCESS, Distributed, GradientAllReduce
from fastinfogan.engine.config import PRECISIONS, TrainConfig
from fastinfogan.engine.network_step import (
    ChainStep,
    DHeadStep,
    OptimizerStep,
    QHeadStep,
    with_working_copies,
)
from fastinfogan.errors import TrainingError
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.optim import Adam
from fastinfogan_kernels.adam.loss_scale import LossScale
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup
from fastinfogan_kernels.inputs.draw import DrawnCodes, draw_codes, empty_codes
from fastinfogan_kernels.inputs.real_images import real_images
from fastinfogan_kernels.objective.metrics import TOO_MANY, accumulate
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import Implementation, choose
from fastinfogan_kernels.runtime.workspace import Workspace

_REAL, _GENERATED = 1, 0


@dataclass(frozen=True)
class StepNetworks:
    """The four networks in one of the two steps."""

    generator: ChainStep
    trunk: ChainStep
    d_head: DHeadStep
    q_head: QHeadStep

    @classmethod
    def of(
        cls,
        networks: InfoGAN,
        e: Experiment,
        rows: int,
        dtype: torch.dtype,
        impl: Implementation,
        process_group: ProcessGroup,
        step: str,
    ) -> Self:
        """Build the networks of the "D" or the "G" step."""
        d = step == "D"
        how: dict[str, Any] = {"dtype": dtype, "impl": impl, "process_group": process_group}
        image = (e.channels, e.height, e.width)
        generator = ChainStep(
            networks.generator, (e.latents.input_width,), rows, **how, trained=not d
        )
        # In the D step real and generated images are one batch with separate batch statistics.
        groups = 2 if d else 1
        trunk = ChainStep(networks.trunk, image, groups * rows, groups=groups, **how, trained=d)
        return cls(
            generator,
            trunk,
            DHeadStep(networks.d_head, trunk.out, groups * rows, groups=groups, **how, trained=d),
            QHeadStep(networks.q_head, trunk.out, rows, **how, trained=d),
        )


class Iteration:
    """The two steps, their optimizers and the sums of what they measured.

    Args:
        experiment: what is trained.
        config: its hyperparameters.
        networks: on the device, in training mode; trained in place.
        images: uint8 (N, height, width, channels) on the same device; real images are gathered
            from it and scaled there.
        impl: the backend.
        distributed: the processes that share the batch.
        in_order: whether `images` are this process's rows of the batch alone, written by the loader
            before each iteration.

    Attributes:
        rows: rows of the batch that are this process's.
        steps: the networks of the D step and of the G step.
        counter: int64 (), the number of the iteration that `program` runs next.
        real: the real images of the last `draw`, (B, height, width, channels).
    """

    def __init__(
        self,
        experiment: Experiment,
        config: TrainConfig,
        networks: InfoGAN,
        images: Tensor,
        impl: Implementation = "auto",
        distributed: Distributed = SINGLE_PROCESS,
        *,
        in_order: bool = False,
    ) -> None:
        e = experiment
        self.distributed = distributed
        self.rows = distributed.rows(config.batch_size)
        self.experiment = e
        self.config = config
        self.networks = networks
        self.device = images.device
        self.precision = PRECISIONS[config.precision]
        self._images = images
        self._in_order = in_order
        self._impl: Implementation = impl
        self._by_triton = choose(impl, self.device) == "triton"
        rows, computed = len(self.rows), self.precision.computed
        # The D step's images: real ones, then generated ones.
        shape = (2 * rows, e.height, e.width, e.channels)
        self._both = images.new_empty(shape, dtype=computed)
        self.real = self._both[:rows]
        self._codes = empty_codes(e.latents, 2 * rows, self.device, computed)
        computing, copies = with_working_copies(networks, computed)
        process_group = distributed.batch_norm_group(
            synchronised=config.batch_norm == "synchronised"
        )
        arguments = (computing, e, rows, computed, impl, process_group)
        self.steps = (StepNetworks.of(*arguments, "D"), StepNetworks.of(*arguments, "G"))
        betas = (e.beta1, e.beta2)
        self.d_adam = Adam(
            [p for _, p in networks.d_parameters()], e.learning_rate_d, betas, e.epsilon
        )
        self.g_adam = Adam(
            [p for _, p in networks.g_parameters()], e.learning_rate_g, betas, e.epsilon
        )
        for adam, parameters in (
            (self.d_adam, networks.d_parameters()),
            (self.g_adam, networks.g_parameters()),
        ):
            adam.make_state()
            for _, parameter in parameters:
                if parameter in copies:
                    adam.add_working_copy(parameter, copies[parameter])
        self.counter = torch.zeros((), dtype=torch.int64, device=self.device)
        # Of the adversarial loss and of each code's log-likelihood, in a mean over all rows.
        weights = [
            weight / distributed.world_size for weight in (1.0, *(-each for each in e.lambdas))
        ]
        self._weights: tuple[float | Tensor, list[float] | Tensor] = weights[0], weights[1:]
        self.loss_scale: LossScale | None = None
        if self.precision.scaled:
            self.loss_scale = LossScale(weights, self.device)
            self._weights = self.loss_scale.weights[:1], self.loss_scale.weights[1:]
        dtype = self.precision.dtype
        self._entropies = torch.tensor(e.latents.entropies, device=self.device, dtype=dtype)
        # d_loss, g_loss, then the G step's bound of each code; see `objective.metrics`.
        self.sums = torch.zeros(2 + len(e.latents.codes), dtype=dtype, device=self.device)
        self.step_counts = torch.zeros(3, dtype=torch.int32, device=self.device)
        # One count for both heads, whose launches follow each other: rows of Q's output and of D's
        # logits that are not finite. Adam updates nothing unless it is 0.
        self._head_counts = torch.zeros(
            3 + len(e.latents.codes), dtype=torch.int32, device=self.device
        )
        self.non_finite_rows = self._head_counts[1:2]
        self._workspace = Workspace()
        self._all_reduce: dict[str, GradientAllReduce] = {}
        divisor = self.loss_scale.divisor if self.loss_scale else None
        self._d_update, self._g_update = (
            OptimizerStep(adam, self.non_finite_rows, divisor, by_triton=self._by_triton)
            for adam in (self.d_adam, self.g_adam)
        )

    @classmethod
    def create(
        cls,
        experiment: Experiment,
        config: TrainConfig,
        images: Tensor | NDArray[np.uint8],
        device: torch.device | str = "cpu",
        *,
        impl: Implementation = "auto",
        distributed: Distributed = SINGLE_PROCESS,
        in_order: bool = False,
    ) -> Self:
        """Build the iteration with newly initialised networks and the images on a device."""
        networks = InfoGAN(experiment, config.seed).to(device)
        if config.precision == "fp64":
            networks = networks.double()
        images = torch.as_tensor(images).to(device)
        return cls(experiment, config, networks, images, impl, distributed, in_order=in_order)

    @torch.no_grad()
    def run(self, step: int) -> None:
        """Run iteration number `step`, counted from 0."""
        with self.precision.arithmetic(), self._workspace:
            self._run(step)
        self.count_batches(1)

    def program(self) -> None:
        """Run iteration number `counter`, which it increments: what is compiled and captured.

        It leaves to its caller `count_batches`, and `precision.arithmetic` around it.
        """
        self._run(self.counter)

    @torch.no_grad()
    def count_batches(self, iterations: int) -> None:
        """Count the batches by which iterations have updated running statistics."""
        for step in self.steps:
            for network in vars(step).values():
                if network.batches_tracked:
                    torch._foreach_add_(network.batches_tracked, network.groups * iterations)

    def _run(self, step: int | Tensor) -> None:
        self.draw(step)
        d_losses, _ = self.d_step()
        g_losses, values = self.g_step()
        accumulate(
            d_losses,
            g_losses,
            values,
            self._entropies,
            self.non_finite_rows,
            self.sums,
            self.step_counts,
            self.loss_scale,
            step if isinstance(step, Tensor) else None,
            by_triton=self._by_triton,
        )

    def draw(self, step: int | Tensor) -> None:
        """Write an iteration's real images, and both steps' noise and code, into their buffers."""
        s = self.config
        real_images(
            self._images,
            s.seed,
            step,
            self.real,
            image_range=self.experiment.image_range,
            augmentation=s.augmentation,
            first_row=self.rows.start,
            all_rows=s.batch_size,
            in_order=self._in_order,
            impl="triton" if self._by_triton else "reference",
        )
        draw_codes(
            self.experiment.latents,
            s.seed,
            step,
            Stream.D_STEP,
            len(self.rows),
            first_row=self.rows.start,
            streams=2,  # the G step's is the one behind
            device=self.device,
            dtype=self.precision.computed,
            impl=self._impl,
            out=self._codes,
        )

    def read(self) -> dict[str, float]:
        """Return the means since the last read, and reset them. Waits for the device.

        Returns:
            d_loss and g_loss (the adversarial losses, without lambda * MI); in nats mi_bound and
            its parts mi_categorical, mi_continuous, mi_c1, mi_c2, ..., on the G step's images; and
            skipped, the iterations in which something was not finite.

        Raises:
            TrainingError: the last `TOO_MANY` iterations or more were skipped.
        """
        spec = self.experiment.latents
        summed, skipped, in_a_row = self.step_counts.tolist()
        means = (self.sums / max(summed, 1)).tolist()
        self.sums.zero_()
        self.step_counts[:2] = 0
        if in_a_row >= TOO_MANY:
            raise TrainingError(
                f"the last {in_a_row} iterations had numbers that are not finite and were skipped"
            )
        bounds = means[2:]
        categorical = len(spec.categorical)
        return {
            "d_loss": means[0],
            "g_loss": means[1],
            "mi_bound": sum(bounds),
            "mi_categorical": sum(bounds[:categorical]),
            "mi_continuous": sum(bounds[categorical:]),
            **{f"mi_{name}": bound for name, bound in zip(spec.names, bounds, strict=True)},
            "skipped": skipped,
        }

    @torch.no_grad()
    def d_step(self) -> tuple[Tensor, Tensor]:
        """Update trunk, D head and Q head, on what `draw` drew.

        Returns:
            The adversarial losses on real and on generated images, (2,), and the mean
            log-likelihood of each code on the generated ones.
        """
        p, codes, rows = self.steps[0], self.codes(0), len(self.rows)
        self._both[rows:].copy_(p.generator.forward(codes.generator_input[:, None, None]))
        features = p.trunk.forward(self._both)
        losses = p.d_head.losses(
            features, (_REAL, _GENERATED), self._weights[0], self._head_counts[1:3]
        )
        values = self._log_likelihood(p.q_head, features[rows:], codes)
        gradient = p.d_head.backward()
        gradient[rows:].add_(p.q_head.backward())
        p.trunk.backward_parameters(gradient)
        gradients = [*p.trunk.gradients, *p.d_head.gradients, *p.q_head.gradients]
        gradients, (losses, values) = self._all_reduced("D", gradients, losses, values)
        self._d_update(gradients)
        return losses, values

    @torch.no_grad()
    def g_step(self) -> tuple[Tensor, Tensor]:
        """Update the generator, on what `draw` drew.

        Returns:
            The adversarial loss, (1,), and the mean log-likelihood of each code.
        """
        p, codes = self.steps[1], self.codes(1)
        features = p.trunk.forward(p.generator.forward(codes.generator_input[:, None, None]))
        losses = p.d_head.losses(features, (_REAL,), self._weights[0], self._head_counts[1:3])
        values = self._log_likelihood(p.q_head, features, codes)
        gradient = p.d_head.backward()
        if self.config.information == "maximise":
            gradient.add_(p.q_head.backward())
        p.generator.backward_parameters(p.trunk.backward(gradient))
        gradients, (losses, values) = self._all_reduced("G", p.generator.gradients, losses, values)
        self._g_update(gradients)
        return losses, values

    def _all_reduced(
        self, step: str, gradients: list[Tensor], *metrics: Tensor
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Sum the gradients, and average the metrics, over all processes."""
        if self.distributed.world_size == 1:
            return gradients, metrics
        sizes = [len(each) for each in metrics]
        if step not in self._all_reduce:
            self._all_reduce[step] = GradientAllReduce(self.distributed, gradients, sum(sizes))
        gradients, means = self._all_reduce[step](
            gradients, torch.cat(metrics), self.non_finite_rows
        )
        return gradients, torch.split(means, sizes)

    def codes(self, step: int) -> DrawnCodes:
        """Return the last draw's noise and codes of the D step (0) or the G step (1), B rows."""
        rows = len(self.rows)
        part, c = slice(step * rows, (step + 1) * rows), self._codes
        return DrawnCodes(c.generator_input[part], c.classes[part], c.continuous[part])

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors of the state by kind and name: the live ones, not copies.

        Call `restored` after writing into them.
        """
        optimizer: dict[str, Tensor] = {}
        for adam, named in (
            (self.d_adam, self.networks.d_parameters()),
            (self.g_adam, self.networks.g_parameters()),
        ):
            for name, parameter in named:
                moments = adam.state[parameter]
                optimizer |= {f"{name}.{key}": value for key, value in moments.items()}
        if self.loss_scale:
            optimizer["loss_scale"] = self.loss_scale.state
        return {
            "weights": dict(self.networks.state_dict()),
            "optimizer": optimizer,
            "metrics": {"sums": self.sums, "tally": self.step_counts},
        }

    def reserve(self, captures: int) -> None:
        """Prepare, at the next iteration, for this number of CUDA-graph captures after it."""
        self._d_update.reserve(captures)
        self._g_update.reserve(captures)

    def restored(self) -> None:
        """Round the working copies again, after the state was written from outside."""
        if self.loss_scale:
            self.loss_scale.restored()
        self.d_adam.refresh_working_copies()
        self.g_adam.refresh_working_copies()

    def _log_likelihood(self, q_head: QHeadStep, features: Tensor, codes: DrawnCodes) -> Tensor:
        """Return it for each code, (codes,); `backward` is of the sum of -lambda times it."""
        spec = self.experiment.latents
        counts = self._head_counts[: 2 + max(len(spec.codes), 1)]
        return q_head.log_likelihood(features, codes, spec, self._weights[1], counts)
