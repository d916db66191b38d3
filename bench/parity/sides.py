"""The sides that are compared: the engine, the reference, and the reference differently rounded.

Where the engine's precision is not fp32, its first iterations are compared in fp32, too. All start
from the weights of the same seed and see the same images, codes and noise, iteration by iteration.
The engine draws them itself; the references are handed what NumPy's definitions say.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from fastinfogan.data import ImageSet
from fastinfogan.data.transforms import to_network
from fastinfogan.engine import Iteration, Precision, TrainConfig, choose_execution
from fastinfogan.engine.environment import versions
from fastinfogan.engine.execution import ExecutionName
from fastinfogan.engine.precision import FP32
from fastinfogan.errors import TrainingError
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.reference import Reference
from fastinfogan_kernels import shuffle
from fastinfogan_kernels.philox import Stream

Side = Literal["reference", "engine", "rounded", "engine32", "rounded32"]
"""The last two: in fp32, where the engine's precision is another, and only the first iterations."""
Step = Callable[[int], Sequence[float]]
"""Runs one iteration, told its number; gives its `quantities`, or NaN where it was skipped."""

_FP16_SCALE: Final = 1024.0
_SETTLES_BY: Final = 24  # from the largest scale to the least
_SHARED: Final = ("experiments", "latents.py", "philox.py", "shuffle.py")
_REFERENCE: Final = (*_SHARED, "reference.py")
_ENGINE: Final = (
    *_SHARED,
    *(f"engine/{name}.py" for name in ("iteration", "network_step", "precision", "execution")),
    "kernels", "nn", "networks.py", "objective.py", "optim.py",
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """What is trained, on what, and how.

    Attributes:
        experiment: with the batch size to train at.
        source: the real images; seen as they are, without augmentation.
        iterations: of a trajectory.
        early: of the first of them, which the other sides run, too.
        precision: the engine's. The reference's is fp32.
        device: of all sides.
        execution: who drives the engine's iterations.

    Raises:
        InputError: a number is out of range, or there is no such execution on the device.
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
        """What is recorded of an iteration, in nats.

        d_loss and g_loss are the adversarial parts, without the MI terms; the bounds L_I of each
        code are those of the G step.
        """
        names = self.experiment.latents.names
        return ("d_loss", "g_loss", *(f"mi_{name}" for name in names))

    @property
    def sides(self) -> tuple[Side, ...]:
        """What is trained."""
        sides: tuple[Side, ...] = get_args(Side)
        return sides[:3] if self.precision is FP32 else sides

    def length(self, side: Side) -> int:
        """Iterations of a side's trajectory."""
        return self.iterations if side in ("reference", "engine") else self.early

    def computed(self, side: Side) -> Precision:
        """A side's precision; of the rounded reference, the one whose rounding it shows."""
        return FP32 if side in ("reference", "engine32", "rounded32") else self.precision

    def settings(self, seed: int, side: Side = "engine") -> TrainConfig:
        """The engine's."""
        return TrainConfig(
            seed=seed,
            batch_size=self.experiment.batch_size,
            precision=self.computed(side).name,
            augmentation="none",
            information="maximise",
            data=None,
            data_fingerprint=self.source.fingerprint,
            log_every=1,
        )

    def fingerprint(self, side: Side) -> dict[str, Any]:
        """All that decides a side's trajectory, but for its seed and the machine."""
        found: dict[str, Any] = {
            "experiment": dataclasses.asdict(self.experiment),
            "data": self.source.fingerprint,
            "device": self.device.type,
            "iterations": self.length(side),
            "versions": versions(),
        }
        if side != "reference":
            found["precision"] = self.computed(side).name
        of_engine = side in ("engine", "engine32")
        if of_engine:
            found["runner"] = choose_execution(self.execution, self.device)[0].__name__
        found["code"] = code(_ENGINE if of_engine else _REFERENCE)
        return found

    def start(self, side: Side, seed: int) -> Step:
        """Make a side's networks and optimizers."""
        if side in ("engine", "engine32"):
            return _engine(self, seed, side)
        return _reference(self, seed, None if side == "reference" else self.computed(side))


def code(rooms: Sequence[str]) -> str:
    """SHA-256 of what computes: these rooms' modules and, if it is built, their C++."""
    home = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for room in rooms:
        path = home / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(home).as_posix().encode() + b"\0")
            digest.update(file.read_bytes())
    if "kernels" in rooms:
        try:
            from fastinfogan_kernels import _native
        except ImportError:
            pass
        else:
            digest.update(Path(str(_native.__file__)).read_bytes())
    return digest.hexdigest()


def trajectory(
    step: Step, iterations: int, quantities: int, progress: Callable[[int], None]
) -> Tensor:
    """Run iterations until all are done, or three in a row were not finite: nothing comes after.

    Returns:
        fp64 (iterations, quantities); NaN where an iteration was skipped or not run.
    """
    found = torch.full((iterations, quantities), torch.nan, dtype=torch.float64)
    broken = 0
    for number in range(iterations):
        found[number] = torch.tensor(step(number), dtype=torch.float64)
        broken = 0 if found[number].isfinite().all() else broken + 1
        if broken == 3:
            break
        progress(number + 1)
    return found


def _engine(setup: Setup, seed: int, side: Side) -> Step:
    networks = InfoGAN(setup.experiment, seed).to(setup.device)
    images = torch.from_numpy(setup.source.images).to(setup.device)
    iteration = Iteration(setup.experiment, setup.settings(seed, side), networks.train(), images)
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
    """Let the loss scale find where it does not overflow, and forget what was trained meanwhile.

    It starts too large by design, and the first iterations are skipped; here they would be missing.
    """
    assert iteration.loss_scale is not None
    kept = iteration.loss_scale.state
    state = [t for kind in iteration.state().values() for t in kind.values() if t is not kept]
    before = [t.clone() for t in state]
    for _ in range(_SETTLES_BY):
        iteration.run(0)
        overflowed = bool(iteration.tally[1])
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        iteration.restored()
        if not overflowed:
            return


def _reference(setup: Setup, seed: int, rounded: Precision | None) -> Step:
    """The reference in fp32; or rounded as PyTorch has a precision, for fp32 in fp64."""
    e, device = setup.experiment, setup.device
    dtype = torch.float64 if rounded is FP32 else torch.float32
    reference = Reference(e, seed, dtype)
    for network in reference.networks:
        network.to(device)
    if rounded and rounded.compute:
        _float_heads(reference, _FP16_SCALE if rounded.scaled else 1.0)
    images = torch.from_numpy(setup.source.images)

    def run(step: int) -> Sequence[float]:
        index = shuffle.indices(seed, step * e.batch_size, e.batch_size, len(images))
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
    """How PyTorch itself computes in a precision.

    Autocast keeps the copies of the weights that it has rounded until its context is left; so
    there is one for each step.
    """
    with ExitStack() as stack:
        stack.enter_context(precision.arithmetic())
        if precision.compute:
            stack.enter_context(torch.autocast(device.type, precision.compute))
        yield


def _float_heads(reference: Reference, scale: float) -> None:
    """Have autocast's losses computed in fp32, as everybody does, and their gradients scaled."""

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
