"""The configurations that are compared: the engine, the reference, and the reference rounded.

Where the engine's precision is not fp32, its first iterations are compared in fp32, too. All start
from the weights of the same seed and see the same images, codes and noise, iteration by iteration.
The engine draws them itself; the references are given what NumPy's definitions say.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

import fastinfogan
import fastinfogan_kernels
from bench.training import train_config
from fastinfogan.data import ImageSet
from fastinfogan.data.transforms import to_network
from fastinfogan.engine import Iteration, Precision, TrainConfig, choose_execution
from fastinfogan.engine.config import FP32, versions
from fastinfogan.engine.execution import ExecutionName
from fastinfogan.errors import TrainingError
from fastinfogan.experiments import Experiment
from fastinfogan.reference import Reference
from fastinfogan_kernels import philox
from fastinfogan_kernels.philox import Stream

Config = Literal["reference", "engine", "rounded", "engine32", "rounded32"]
"""The last two: in fp32, where the engine's precision is another, and only the first iterations."""
Step = Callable[[int], Sequence[float]]
"""Runs the iteration of a number; returns its `quantities`, or NaN where it was skipped."""

_FP16_SCALE: Final = 1024.0
_SETTLES_BY: Final = 24  # from the largest scale to the least


@dataclass(frozen=True)
class Setup:
    """What is trained, on which images, and how.

    Attributes:
        experiment: with the batch size to train at.
        source: the real images; seen as they are, without augmentation.
        iterations: of a trajectory.
        early: of the first of them, which the other configurations run, too.
        precision: the engine's. The reference's is fp32.
        device: of all configurations.
        execution: mode of the engine's iterations.

    Raises:
        InputError: a number is out of range, or the device has no such execution mode.
    """

    experiment: Experiment
    source: ImageSet
    iterations: int
    early: int
    precision: Precision
    device: torch.device
    execution: ExecutionName = "auto"

    def __post_init__(self) -> None:
        self.settings(0)
        choose_execution(self.execution, self.device)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of what is recorded of an iteration, in nats.

        d_loss and g_loss are the adversarial parts, without the MI terms; the bounds L_I of each
        code are those of the G step.
        """
        names = self.experiment.latents.names
        return ("d_loss", "g_loss", *(f"mi_{name}" for name in names))

    @property
    def configs(self) -> tuple[Config, ...]:
        configs: tuple[Config, ...] = get_args(Config)
        return configs[:3] if self.precision is FP32 else configs

    def length(self, config: Config) -> int:
        """Return the iterations of a configuration's trajectory."""
        return self.iterations if config in ("reference", "engine") else self.early

    def computed(self, config: Config) -> Precision:
        """Return the precision of a configuration; of a rounded reference, of its rounding."""
        return FP32 if config in ("reference", "engine32", "rounded32") else self.precision

    def settings(self, seed: int, config: Config = "engine") -> TrainConfig:
        return train_config(
            self.experiment,
            self.computed(config).name,
            seed=seed,
            data_fingerprint=self.source.fingerprint,
            log_every=1,
        )

    def fingerprint(self, config: Config) -> dict[str, Any]:
        """Return what decides a trajectory, except for its seed and the machine."""
        found: dict[str, Any] = {
            "experiment": asdict(self.experiment),
            "data": self.source.fingerprint,
            "device": self.device.type,
            "iterations": self.length(config),
            "versions": versions(),
            "code": code(),
        }
        if config != "reference":
            found["precision"] = self.computed(config).name
        if config in ("engine", "engine32"):
            found["execution"] = choose_execution(self.execution, self.device)[0].name
        return found

    def start(self, config: Config, seed: int) -> Step:
        if config in ("engine", "engine32"):
            return _engine(self, seed, config)
        return _reference(self, seed, None if config == "reference" else self.computed(config))


@cache
def code() -> str:
    """Hash the sources of both packages and the compiled C++; SHA-256."""
    digest = hashlib.sha256()
    for package in (fastinfogan, fastinfogan_kernels):
        folder = Path(str(package.__file__)).parent
        for file in sorted((*folder.rglob("*.py"), *folder.glob("_native*"))):
            digest.update(f"{package.__name__} {file.relative_to(folder).as_posix()}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _engine(setup: Setup, seed: int, config: Config) -> Step:
    iteration = Iteration.create(
        setup.experiment, setup.settings(seed, config), setup.source.images, setup.device
    )
    execution = choose_execution(setup.execution, setup.device)[0](iteration)
    if iteration.loss_scale:
        _settle(iteration)

    def run(step: int) -> Sequence[float]:
        execution.run(step, 1)
        try:
            found = iteration.read()
        except TrainingError:
            found = {"skipped": 1.0}
        if found["skipped"]:
            return [torch.nan] * len(setup.quantities)
        return [found[name] for name in setup.quantities]

    return run


def _settle(iteration: Iteration) -> None:
    """Lower the loss scale until nothing overflows, and undo what was trained meanwhile.

    It starts too large by design, and the first iterations are skipped; here they would be missing.
    """
    assert iteration.loss_scale is not None
    scale = iteration.loss_scale.state
    state = [t for kind in iteration.state().values() for t in kind.values() if t is not scale]
    before = [t.clone() for t in state]
    for _ in range(_SETTLES_BY):
        iteration.run(0)
        overflowed = bool(iteration.step_counts[1])
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        iteration.restored()
        if not overflowed:
            return


def _reference(setup: Setup, seed: int, rounded: Precision | None) -> Step:
    """Make the reference in fp32; or rounded as PyTorch does in a precision, for fp32 in fp64."""
    e, device = setup.experiment, setup.device
    dtype = torch.float64 if rounded is FP32 else torch.float32
    reference = Reference(e, seed, dtype)
    for network in reference.networks:
        network.to(device)
    if rounded and rounded.compute:
        _float_heads(reference, _FP16_SCALE if rounded.scaled else 1.0)
    images = torch.from_numpy(setup.source.images)

    def run(step: int) -> Sequence[float]:
        index = philox.shuffled_indices(seed, step * e.batch_size, e.batch_size, len(images))
        real = to_network(images[torch.from_numpy(index)].to(device), e.image_range, dtype)
        real = real.contiguous()
        d_codes, g_codes = (
            e.latents.draw(seed, step, stream, e.batch_size)
            for stream in (Stream.D_STEP, Stream.G_STEP)
        )
        # The reference makes its tensors of NumPy's arrays where torch makes tensors by default.
        with torch.device(device):
            with _arithmetic(rounded or FP32, device):
                d_loss, d_bounds = reference.d_step(real, d_codes)
            with _arithmetic(rounded or FP32, device):
                g_loss, g_bounds = reference.g_step(g_codes)
        losses = [d_loss + reference.weighted(d_bounds), g_loss + reference.weighted(g_bounds)]
        return [float(each.detach()) for each in (*losses, *g_bounds)]

    return run


@contextmanager
def _arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute as PyTorch does in a precision.

    Autocast caches the weights that it has rounded until its context is left; so each step has one.
    """
    with ExitStack() as stack:
        stack.enter_context(precision.arithmetic())
        if precision.compute:
            stack.enter_context(torch.autocast(device.type, precision.compute))
        yield


def _float_heads(reference: Reference, scale: float) -> None:
    """Compute autocast's losses in fp32, as is usual, and scale their gradients."""

    def to_float(_: nn.Module, __: object, output: Tensor) -> Tensor:
        output = output.float()
        if scale != 1.0 and output.requires_grad:
            output.register_hook(lambda gradient: gradient * scale)  # type: ignore[no-untyped-call]
        return output

    for head in (reference.d_head, reference.q_head):
        head.register_forward_hook(to_float)
    if scale == 1.0:
        return
    for adam in (reference.d_adam, reference.g_adam):

        def unscale(optimizer: torch.optim.Optimizer, *_: object) -> None:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad.div_(scale)

        adam.register_step_pre_hook(unscale)
