"""Whole iterations of the experiments, D step and G step with both Adams, as training runs them.

Checked on weights that keep activations near 1: both steps' gradients, losses and bounds on the
same weights as the reference's, and that each update is Adam's of these gradients. What is timed
starts from the released initial weights and trains on.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import count as numbers
from typing import Any

import torch
from torch import Tensor

from bench.accuracy import MismatchError, check_accuracy, check_same_bits
from bench.baselines import BEST, COMPILED, CUDAGRAPHS, EAGER, benchmark_cudnn, reset_compiled
from bench.baselines.iteration import BestLoop, UsualLoop, inputs_of, loop
from bench.cases import Case, Planned, Setting, plan
from bench.cases.blocks import copy_parameters, widen
from bench.cases.shapes import batch_on, chosen_precisions, layer_shapes
from bench.counting.iteration import count
from bench.timing.clock import Run
from bench.training import SEED, images_for, iteration_for
from fastinfogan import experiments
from fastinfogan.engine import Iteration
from fastinfogan.engine.config import PRECISIONS, ComputedIn
from fastinfogan.engine.execution import EagerExecution, Execution, choose_execution
from fastinfogan.experiments import Experiment
from fastinfogan.optim import Adam

BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""On a GPU, those that fit into its memory."""
MNIST_ON_A_CPU = (32, 128, 512)
SET = 4096
"""Images in the synthetic set, or twice the batch."""
_COPIES = 8
"""Times that a loop's fp32 activations are in memory, with gradients and the check's fp64."""


def planned(
    device: torch.device,
    names: Iterable[str] | None = None,
    precisions: Sequence[ComputedIn] | None = None,
    batches: Sequence[int] | None = None,
    baselines: Sequence[str] | None = None,
) -> list[Planned]:
    """Plan all experiments at the batches that a device can do.

    Args:
        device: where they will run.
        names: of experiments; None for all.
        precisions: None for the device's own: "auto" at every batch, and fp32 at the experiment's.
        batches: None for the device's own: on a GPU all of `BATCHES` that fit into its memory, on
            a CPU 32, 128 and 512 of mnist and one batch of each other.
        baselines: of "eager", "best", "compiled" and "cudagraphs"; None for those that a device
            can afford.
    """
    plans = []
    for name in experiments.EXPERIMENTS if names is None else names:
        e = experiments.get(name)
        found = chosen_precisions(device) if precisions is None else list(precisions)
        usual = batch_on(device, name)
        for batch in _batches(e, device) if batches is None else batches:
            for precision in found:
                if precisions is None and precision != found[0] and batch != usual:
                    continue
                title = f"{name}, batch {batch}, {precision}"
                chosen, left_out = _affordable(device, name, batch, precision)
                if baselines is not None:
                    chosen, left_out = baselines, ""
                make = partial(_iteration, baselines=chosen, left_out=left_out)
                # At 32 nothing is compiled, which alone would take longer than the short set.
                short = name == "mnist" and batch == BATCHES[0] and precision == found[0]
                budget = 8.0 if name == "mnist" and batch == usual else 4.0
                made = plan(
                    make, "iteration", title, e, precision, batch, short=short, budget=budget
                )
                plans.append(made)
    return plans


def _batches(e: Experiment, device: torch.device) -> Sequence[int]:
    if device.type == "cpu":
        return MNIST_ON_A_CPU if e.name == "mnist" else (batch_on(device, e.name),)
    memory = torch.cuda.get_device_properties(device).total_memory
    activations = sum(s.images * math.prod(s.result) for s in layer_shapes(e, 1))
    return [b for b in BATCHES if _COPIES * 4 * b * activations + (2 << 30) < 0.8 * memory]


def _affordable(
    device: torch.device, name: str, batch: int, precision: ComputedIn
) -> tuple[Sequence[str], str]:
    """Choose the baselines of a case; and say which were left out and why."""
    if device.type == "cuda":
        return [EAGER, BEST, COMPILED, CUDAGRAPHS], ""
    gpu = f"{CUDAGRAPHS}: a GPU's"
    if precision == "fp32":
        return [EAGER], f"{BEST}, {COMPILED}: they are bf16; {gpu}"
    if name == "mnist" and batch == batch_on(device, name):
        return [EAGER, BEST, COMPILED], gpu
    return [EAGER, BEST], f"{COMPILED}: minutes of compiling each; {gpu}"


def _iteration(at: Setting, baselines: Sequence[str], left_out: str) -> Case:
    e, precision, batch = at.experiment, at.precision, at.batch
    benchmark_cudnn()
    reset_compiled()
    counts = count(replace(e, batch_size=batch), precision)
    images = images_for(e, max(SET, 2 * batch), at.device)
    mode, _ = choose_execution("auto", at.device)
    execution = mode(iteration_for(e, precision, batch, images))
    per_call = mode.iterations_per_call

    def repeated(run: Run) -> Run:
        def several() -> None:
            for _ in range(per_call):
                run()

        return several if per_call > 1 else run

    firsts = numbers(0, per_call)
    return at.case(
        lambda: execution.run(next(firsts), per_call),
        {name: repeated(_made_at_first(name, e, images, batch, at.dtype)) for name in baselines},
        partial(check_parity, at, images, mode),
        flops=counts.flops,
        bytes=counts.bytes_minimum,
        timed="steady",
        units=per_call,
        more={"execution": mode.name, "left out": left_out, "launches": counts.launches},
    )


def _made_at_first(*arguments: Any) -> Run:  # noqa: ANN401 - of loop()
    """Make a baseline, compile and capture it at its first run, after the check."""
    made = cache(lambda: loop(*arguments))
    return lambda: made().run()


def check_parity(at: Setting, images: Tensor, mode: type[Execution] = EagerExecution) -> None:
    """Check an iteration against the reference's, in fp64 for fp32 and in fp32 for 16 bits.

    Args:
        at: experiment, precision and batch.
        images: uint8 (N, height, width, channels) on the device.
        mode: that is timed.

    Raises:
        MismatchError: losses, bounds or gradients are further off than torch's at the same
            precision, an update is not Adam's, or the mode's weights are not eager mode's.
    """
    with PRECISIONS[at.precision].arithmetic():
        actual = iteration_for(at.experiment, at.precision, at.batch, images)
        for network in _networks(actual):
            widen(network, at.dtype)
        actual.restored()
        start = [p.detach().clone() for p in actual.networks.parameters()]
        gradients = _watched(actual)
        actual.run(0)
        results = _named(actual, gradients, actual.sums, at)
        best = BestLoop(at.experiment, images, at.batch, computed=at.dtype)
        true = UsualLoop(at.experiment, images, at.batch, dtype=at.true_dtype)
        expected, truth = (_of_baseline(each, actual, images, at) for each in (best, true))
        check_accuracy(results, expected, truth, at.dtype, kinks=True)
        if mode is not EagerExecution:
            weights = [_weights(each, start, images, at) for each in (mode, EagerExecution)]
            check_same_bits(weights[0], weights[1], f"weights by {mode.name}")


def _networks(actual: Iteration) -> tuple[torch.nn.Module, ...]:
    """List the networks in the order of the reference's."""
    n = actual.networks
    return n.generator, n.trunk, n.d_head, n.q_head


def _named(
    actual: Iteration, gradients: Sequence[Tensor], measured: Tensor, at: Setting
) -> dict[str, Tensor]:
    """Name results; in 16 bits without sums of a single value, whose errors cancel by luck."""
    n = actual.networks
    names = [name for name, _ in (*n.d_parameters(), *n.g_parameters())]
    found = {"losses": measured[:2], "bounds": measured[2:]}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient.numel() > 1 or at.dtype.itemsize == 4:
            found[name] = gradient
    return found


def _watched(actual: Iteration) -> list[Tensor]:
    """Record each update's gradients, check it, and undo it: both steps see the same state."""
    found: list[Tensor] = []
    scale = actual.loss_scale.divisor.clone() if actual.loss_scale else 1.0
    for step, adam in (("d", actual.d_adam), ("g", actual.g_adam)):
        update = getattr(actual, f"_{step}_update")

        def watched(
            gradients: Sequence[Tensor],
            adam: Adam = adam,
            update: Callable[[Sequence[Tensor]], None] = update,
        ) -> None:
            parameters = adam.param_groups[0]["params"]
            before = [p.detach().clone() for p in parameters]
            unscaled = [g.detach().float() / scale for g in gradients]
            update(gradients)
            _check_update(adam, before, unscaled)
            for parameter, value in zip(parameters, before, strict=True):
                parameter.data.copy_(value)
            adam.refresh_working_copies()
            found.extend(unscaled)

        setattr(actual, f"_{step}_update", watched)
    return found


def _check_update(adam: Adam, before: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Check Adam's first step from zero moments: by the gradient over its own size."""
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


def _of_baseline(
    baseline: UsualLoop, actual: Iteration, images: Tensor, at: Setting
) -> dict[str, Tensor]:
    """Run an iteration of a loop from the same weights and inputs, without its updates."""
    for source, target in zip(_networks(actual), baseline.networks, strict=True):
        copy_parameters(source, target)
    found: list[Tensor] = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        found.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])

    for adam in (baseline.d_adam, baseline.g_adam):
        adam.param_groups[0]["lr"] = 0.0
        adam.register_step_pre_hook(record)
    measured = baseline.iterate(inputs_of(at.experiment, images, SEED, 0, at.batch))
    return _named(actual, found, measured, at)


def _weights(
    mode: type[Execution], start: Sequence[Tensor], images: Tensor, at: Setting
) -> dict[str, Tensor]:
    """Run the first iteration in a mode; the weights after it."""
    iteration = iteration_for(at.experiment, at.precision, at.batch, images)
    for parameter, value in zip(iteration.networks.parameters(), start, strict=True):
        parameter.data.copy_(value)
    mode(iteration).run(0, 1)
    return iteration.state()["weights"]
