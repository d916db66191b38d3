"""Whole iterations of the experiments, D step and G step with both Adams, as training runs them.

Checked on weights that keep activations near 1: both steps' gradients, losses and bounds on the
same weights as the reference's, and that each update is Adam's of these gradients. What is timed
starts from the released initial weights and trains on.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count as numbers
from typing import Any

import torch
from torch import Tensor

from bench.accuracy import MismatchError, check_accuracy, check_same_bits
from bench.baselines import (
    BEST,
    COMPILED,
    CUDAGRAPHS,
    EAGER,
    forget_compiled,
    let_cudnn_choose,
)
from bench.baselines.iteration import BestLoop, UsualLoop, inputs_of, loop
from bench.cases import Case, Planned
from bench.cases.blocks import copy_parameters, widen
from bench.cases.inputs import true_dtype
from bench.cases.shapes import batch_on, chosen_precisions, layer_shapes
from bench.counting.iteration import count
from bench.timing.clock import Run
from fastinfogan import experiments
from fastinfogan.engine import Iteration, TrainConfig
from fastinfogan.engine.execution import EagerExecution, Execution, choose_execution
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.optim import Adam

SEED = 1
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""On a GPU, those that fit into its memory."""
MNIST_ON_A_CPU = (32, 128, 512)
SET = 4096
"""Images in the made-up set, or twice the batch."""
_MAPS_AT_ONCE = 8
"""Times that a loop's fp32 maps are in memory, with gradients and the check's fp64."""


def planned(
    device: torch.device,
    names: Iterable[str] | None = None,
    precisions: Sequence[ComputedIn] | None = None,
    batches: Sequence[int] | None = None,
    peers: Sequence[str] | None = None,
) -> list[Planned]:
    """All experiments at the batches that a device can do.

    Args:
        device: where they will run.
        names: of experiments; None for all.
        precisions: None for the device's own: "auto" at every batch, and fp32 at the experiment's.
        batches: None for the device's own: on a GPU all of `BATCHES` that fit into its memory, on
            a CPU 32, 128 and 512 of mnist and one batch of each other.
        peers: of "eager", "best", "compiled" and "cudagraphs"; None for those that a device can
            afford.
    """
    plans = []
    for name in experiments.BASES if names is None else names:
        e = experiments.get(name)
        found = chosen_precisions(device) if precisions is None else list(precisions)
        usual = batch_on(device, name)
        for batch in _batches(e, device) if batches is None else batches:
            for precision in found:
                if precisions is None and precision != found[0] and batch != usual:
                    continue
                title = f"{name}, batch {batch}, {precision}"
                sides, left_out = _peers(device, name, batch, precision, peers)
                make = partial(_iteration, title, e, precision, batch, sides, left_out)
                # At 32 nothing is compiled, which alone would take longer than the short set.
                short = name == "mnist" and batch == BATCHES[0] and precision == found[0]
                budget = 8.0 if name == "mnist" and batch == usual else 4.0
                plans.append(Planned("iteration", title, make, short, budget))
    return plans


def _batches(e: Experiment, device: torch.device) -> Sequence[int]:
    if device.type == "cpu":
        return MNIST_ON_A_CPU if e.name == "mnist" else (batch_on(device, e.name),)
    memory = torch.cuda.get_device_properties(device).total_memory
    return [batch for batch in BATCHES if _needed(e, batch) < 0.8 * memory]


def _needed(e: Experiment, batch: int) -> int:
    """Bytes that the loops and the check of a batch need, about."""
    maps = sum(s.images * math.prod(s.result) for s in layer_shapes(e, batch))
    return _MAPS_AT_ONCE * 4 * maps + (2 << 30)


def _peers(
    device: torch.device,
    name: str,
    batch: int,
    precision: ComputedIn,
    asked: Sequence[str] | None,
) -> tuple[list[str], str]:
    """The peers of a case, and which were left out and why."""
    if asked is not None:
        return list(asked), ""
    if device.type == "cuda":
        return [EAGER, BEST, COMPILED, CUDAGRAPHS], ""
    gpu = f"{CUDAGRAPHS}: a GPU's"
    if precision == "fp32":
        return [EAGER], f"{BEST}, {COMPILED}: they are bf16; {gpu}"
    if name == "mnist" and batch == batch_on(device, name):
        return [EAGER, BEST, COMPILED], gpu
    return [EAGER, BEST], f"{COMPILED}: minutes of compiling each; {gpu}"


def images_for(e: Experiment, count: int, device: torch.device) -> Tensor:
    """Made-up images: bright discs in random places, uint8 (count, height, width, channels)."""
    u = torch.rand((count, 2, 1, 1), generator=torch.Generator().manual_seed(5)) * 1.2 - 0.6
    y, x = (torch.linspace(-1, 1, side) for side in (e.height, e.width))
    distance = torch.hypot(y[None, :, None] - u[:, 0], x[None, None, :] - u[:, 1])
    discs = ((1.5 - 3.0 * distance).clamp(0, 1) * 255).to(torch.uint8)
    return discs[..., None].expand(-1, -1, -1, e.channels).contiguous().to(device)


def iteration_for(e: Experiment, precision: ComputedIn, batch: int, images: Tensor) -> Iteration:
    """The product's iteration on a device."""
    settings = TrainConfig(
        seed=SEED,
        batch_size=batch,
        precision=precision,
        augmentation="none",
        information="maximise",
        data=None,
        data_fingerprint={},
    )
    networks = InfoGAN(e, SEED).to(images.device)
    return Iteration(e, settings, networks, images)


def _iteration(
    title: str,
    e: Experiment,
    precision: ComputedIn,
    batch: int,
    sides: Sequence[str],
    left_out: str,
    device: torch.device,
) -> Case:
    let_cudnn_choose()
    forget_compiled()
    counts = count(replace(e, batch_size=batch), precision)
    images = images_for(e, max(SET, 2 * batch), device)
    execution_class, _ = choose_execution("auto", device)
    execution = execution_class(iteration_for(e, precision, batch, images))
    at_once, how = execution.iterations_per_call, PRECISIONS[precision]

    def times(run: Run) -> Run:
        def several() -> None:
            for _ in range(at_once):
                run()

        return several if at_once > 1 else run

    firsts = numbers(0, at_once)
    others = {side: times(_Lazy(side, e, images, batch, how.computed)) for side in sides}
    return Case(
        "iteration",
        title,
        lambda: execution.run(next(firsts), at_once),
        others,
        partial(check_parity, e, precision, batch, images, execution_class),
        e.name,
        precision,
        batch,
        counts.flops,
        counts.bytes_minimum,
        "steady",
        at_once,
        {"runner": execution_class.__name__, "left out": left_out, "launches": counts.launches},
    )


class _Lazy:
    """A peer that is made, compiled and captured at its first run, after the check."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401
        self._arguments = arguments
        self._loop: UsualLoop | None = None

    def __call__(self) -> None:
        if self._loop is None:
            self._loop = loop(*self._arguments)
        self._loop.run()


def check_parity(
    e: Experiment,
    precision: ComputedIn,
    batch: int,
    images: Tensor,
    execution: type[Execution] = EagerExecution,
) -> None:
    """Check an iteration against the reference's, in fp64 for fp32 and in fp32 for 16 bits.

    Raises:
        MismatchError: losses, bounds or gradients are further off than torch's at the same
            precision, an update is not Adam's, or the execution's iteration is not this one.
    """
    how = PRECISIONS[precision]
    with how.arithmetic():
        ours = iteration_for(e, precision, batch, images)
        for network in _networks(ours):
            widen(network, how.computed)
        ours.restored()
        start = [p.detach().clone() for p in ours.networks.parameters()]
        found = _watched(ours)
        ours.run(0)
        names = [n for n, _ in (*ours.networks.d_parameters(), *ours.networks.g_parameters())]
        narrow = how.computed.itemsize < 4
        sides = [_named(names, found, ours.sums, narrow=narrow)]
        for make in (
            partial(BestLoop, computed=how.computed),
            partial(UsualLoop, dtype=true_dtype(how.computed)),
        ):
            sides.append(
                _of_peer(make(e, images, batch), ours, images, batch, names, narrow=narrow)
            )
        check_accuracy(sides[0], sides[1], sides[2], how.computed, kinks=True)
        if execution is not EagerExecution:
            _check_execution(execution, start, e, precision, batch, images)


def _networks(ours: Iteration) -> tuple[torch.nn.Module, ...]:
    """In the order of the reference's."""
    n = ours.networks
    return n.generator, n.trunk, n.d_head, n.q_head


def _named(
    names: Sequence[str], gradients: Sequence[Tensor], measured: Tensor, *, narrow: bool
) -> dict[str, Tensor]:
    """Results by name; in 16 bits without sums of a single value, whose errors cancel by luck."""
    found = {"losses": measured[:2], "bounds": measured[2:]}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient.numel() > 1 or not narrow:
            found[name] = gradient
    return found


def _watched(ours: Iteration) -> list[Tensor]:
    """Have each update leave its gradients, be checked, and be undone: both steps on one state."""
    found: list[Tensor] = []
    scale = ours.loss_scale.divisor.clone() if ours.loss_scale else 1.0
    for step, adam in (("d", ours.d_adam), ("g", ours.g_adam)):
        update = getattr(ours, f"_{step}_update")

        def watched(
            gradients: Sequence[Tensor],
            adam: Adam = adam,
            update: Callable[[Sequence[Tensor]], None] = update,
        ) -> None:
            parameters = adam.param_groups[0]["params"]
            before = [p.detach().clone() for p in parameters]
            kept = [g.detach().float() / scale for g in gradients]
            update(gradients)
            _check_update(adam, before, kept)
            for parameter, value in zip(parameters, before, strict=True):
                parameter.data.copy_(value)
            adam.write_copies()
            found.extend(kept)

        setattr(ours, f"_{step}_update", watched)
    return found


def _check_update(adam: Adam, before: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Adam's first step from nothing: by the gradient over its own size."""
    group = adam.param_groups[0]
    rate, eps = float(group["lr"]), group["eps"]
    for parameter, old, g in zip(group["params"], before, gradients, strict=True):
        wide = g.double().view(old.shape)
        expected = old.double() - rate * wide / (wide.abs() + eps)
        off = float((parameter.detach().double() - expected).abs().max())
        limit = 1e-3 * rate + 1e-6 * float(old.abs().max())
        if not off <= limit:
            raise MismatchError(
                f"an update of a parameter of shape {tuple(old.shape)} is {off:.3g} off from "
                f"Adam's of its gradient, {limit:.3g} is allowed"
            )


def _of_peer(
    peer: UsualLoop,
    ours: Iteration,
    images: Tensor,
    batch: int,
    names: Sequence[str],
    *,
    narrow: bool,
) -> dict[str, Tensor]:
    for mine, theirs in zip(_networks(ours), peer.networks, strict=True):
        copy_parameters(mine, theirs)
    found: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        found.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])

    for adam in (peer.d_adam, peer.g_adam):
        adam.param_groups[0]["lr"] = 0.0
        adam.register_step_pre_hook(keep)
    measured = peer.iterate(inputs_of(ours.experiment, images, SEED, 0, batch))
    return _named(names, found, measured, narrow=narrow)


def _check_execution(
    execution: type[Execution],
    start: Sequence[Tensor],
    e: Experiment,
    precision: ComputedIn,
    batch: int,
    images: Tensor,
) -> None:
    """What the execution does with the first iteration is what calls one by one do with it."""
    both = []
    for who in (EagerExecution, execution):
        each = iteration_for(e, precision, batch, images)
        for parameter, value in zip(each.networks.parameters(), start, strict=True):
            parameter.data.copy_(value)
        each.restored()
        who(each).run(0, 1)
        both.append(each.state()["weights"])
    check_same_bits(both[1], both[0], f"weights by {execution.__name__}")
