"""Trunk and generator of each experiment, forward and backward, as a user of the blocks has them.

The trunk takes real and generated images as two statistics groups, as the D step does; its input,
like the generator's, needs no gradient. Ours computes with weights in the activations' dtype, the
working copies that Adam writes; the baselines' weights are fp32, and autocast rounds them.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.accuracy import check_accuracy
from bench.baselines import BEST, COMPILED, EAGER, benchmark_cudnn, reset_compiled
from bench.baselines.blocks import Parts, forward_backward, plain
from bench.cases import Case, Planned, Setting, plan
from bench.cases.shapes import batch_on, chosen_precisions, layer_shapes
from fastinfogan import experiments
from fastinfogan.engine.config import PRECISIONS, ComputedIn
from fastinfogan.engine.network_step import with_working_copies
from fastinfogan.networks import InfoGAN

if TYPE_CHECKING:
    from bench.timing.clock import Run


def planned(
    device: torch.device,
    names: Iterable[str] | None = None,
    precisions: Sequence[ComputedIn] | None = None,
    batch: int | None = None,
) -> list[Planned]:
    """Plan all trunks and generators, each once: celeba's trunk is svhn's.

    Args:
        device: where they will run.
        names: of experiments; None for all.
        precisions: None for the device's own, "auto" and fp32.
        batch: images in a step; None for 128, and 16 for chairs on a CPU.
    """
    plans, seen = [], set()
    for name in experiments.EXPERIMENTS if names is None else names:
        e = experiments.get(name)
        for precision in chosen_precisions(device) if precisions is None else precisions:
            for which in ("trunk", "generator"):
                rows = batch or batch_on(device, name)
                image = (e.height, e.width, e.channels)
                key = (which, precision, rows, e.slope)
                key += (e.trunk, image) if which == "trunk" else (e.generator, e.latents)
                if key in seen:
                    continue
                seen.add(key)
                title = f"{which}, {name}, batch {rows}, {precision}"
                make = partial(_chain, which=which)
                short = name == "mnist" and precision != "fp32"
                made = plan(make, "blocks", title, e, precision, rows, short=short, budget=1.0)
                plans.append(made)
    return plans


def _chain(at: Setting, which: str) -> Case:
    e, dtype, device = at.experiment, at.dtype, at.device
    benchmark_cudnn()
    shapes = [s for s in layer_shapes(e, at.batch) if s.network == which]
    groups, images, last = shapes[0].groups, shapes[0].images, shapes[-1]
    size = (e.channels, e.height, e.width) if which == "trunk" else (e.latents.input_width,)
    network = getattr(InfoGAN(e), which).to(device)
    widen(network, dtype)
    out = (last.result[2], *last.result[:2])
    flat = last.layer.geometry.flat and last.layer.shape is None
    x = _laid_out(at.randn(images, *size))
    upstream = _laid_out(at.randn(images, *(out[:1] if flat else out), seed=2))
    in_dtype, _ = with_working_copies(network, dtype)
    trained = [p for p in in_dtype.parameters() if p.requires_grad]

    def run() -> tuple[Tensor, tuple[Tensor, ...]]:
        result: Tensor = in_dtype(x, groups)
        return result, torch.autograd.grad(result, trained, upstream)

    def baseline(
        of: torch.dtype,
        autocast: torch.dtype | None = None,
        memory: torch.memory_format = torch.contiguous_format,
        *,
        compiled: bool = False,
    ) -> Callable[[], tuple[Parts, Parts]]:
        by_torch = plain(e, which, device)
        copy_parameters(network, by_torch)
        by_torch.to(of).to(memory_format=memory)  # type: ignore[call-overload]
        inputs, gradients = (
            tuple(_laid_out(part, memory) for part in t.to(to).chunk(groups))
            for t, to in ((x, of), (upstream, autocast or of))
        )
        return forward_backward(by_torch, inputs, gradients, autocast, compiled=compiled)

    def best(*, compiled: bool = False) -> Callable[[], tuple[Parts, Parts]]:
        autocast = None if dtype == torch.float32 else dtype
        return baseline(torch.float32, autocast, torch.channels_last, compiled=compiled)

    def check() -> None:
        names = [n for n, p in network.named_parameters() if p.requires_grad]

        def named(out: Tensor, gradients: Iterable[Tensor]) -> dict[str, Tensor]:
            return {"out": out.detach(), **dict(zip(names, gradients, strict=True))}

        with PRECISIONS[at.precision].arithmetic():
            expected, truth = (
                named(torch.cat(parts), gradients)
                for parts, gradients in (best()(), baseline(at.true_dtype)())
            )
            check_accuracy(named(*run()), expected, truth, dtype, kinks=True)

    more = {}
    others: dict[str, Run] = {EAGER: baseline(torch.float32), BEST: best()}
    if device.type == "cuda":
        reset_compiled()
        others[COMPILED] = best(compiled=True)
    else:
        more["left out"] = f"{COMPILED}: a minute of compiling each"
    # Forward and by the weight in every layer, by the input in all but the first.
    passes = [2 if s.number == 1 else 3 for s in shapes]
    values = sum(n * s.values for n, s in zip(passes, shapes, strict=True))
    return at.case(
        run, others, check, bytes=values * dtype.itemsize, more=more,
        flops=sum(n * s.flops for n, s in zip(passes, shapes, strict=True)),
    )  # fmt: skip


def _laid_out(t: Tensor, memory: torch.memory_format = torch.channels_last) -> Tensor:
    return t.contiguous(memory_format=memory) if t.dim() == 4 else t.contiguous()


def widen(network: nn.Module, dtype: torch.dtype) -> None:
    """Give weights the scale that keeps activations near 1, in values that a dtype holds.

    With the paper's 0.02 the first feature maps are all but constant; batch norm then divides
    rounding errors by next to nothing, and on which side of a kink they fall is chance.
    """
    source = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            drawn = torch.randn(parameter.shape, generator=source) / parameter[0].numel() ** 0.5
            parameter.data.copy_(drawn.to(dtype))


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters of a network into the same one in torch.nn, in its order."""
    with torch.no_grad():
        for one, other in zip(source.parameters(), target.parameters(), strict=True):
            other.copy_(one)
