"""Trunk and generator of each experiment, forward and backward, as a user of the blocks has them.

The trunk takes real and generated images as two statistics groups, as the D step does; its input,
as the generator's, needs no gradient. Ours computes with weights in the maps' format, as Adam keeps
them; the peers' are fp32, and autocast rounds them.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.accuracy import check_accuracy
from bench.baselines import BEST, COMPILED, EAGER, forget_compiled, let_cudnn_choose
from bench.baselines.blocks import ForwardBackward, plain
from bench.cases import Case, Planned
from bench.cases.inputs import randn, true_dtype
from bench.cases.shapes import batch_on, chosen_precisions, layer_shapes
from fastinfogan import experiments
from fastinfogan.engine.precision import PRECISIONS, ComputedIn, narrowed
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN

if TYPE_CHECKING:
    from bench.timing.clock import Run

NETWORKS = ("trunk", "generator")


def planned(
    device: torch.device,
    names: Iterable[str] | None = None,
    precisions: Sequence[ComputedIn] | None = None,
    batch: int | None = None,
) -> list[Planned]:
    """All trunks and generators, each once: celeba's trunk is svhn's.

    Args:
        device: where they will run.
        names: of experiments; None for all.
        precisions: None for the device's own, "auto" and fp32.
        batch: images in a step; None for 128, and 16 for chairs on a CPU.
    """
    plans, seen = [], set()
    for name in experiments.BASES if names is None else names:
        e = experiments.get(name)
        for precision in chosen_precisions(device) if precisions is None else precisions:
            for which in NETWORKS:
                rows = batch or batch_on(device, name)
                image = (e.height, e.width, e.channels)
                key = (which, precision, rows, e.slope)
                key += (e.trunk, image) if which == "trunk" else (e.generator, e.latents)
                if key in seen:
                    continue
                seen.add(key)
                title = f"{which}, {name}, batch {rows}, {precision}"
                make = partial(_chain, title, e, which, precision, rows)
                short = name == "mnist" and precision != "fp32"
                plans.append(Planned("blocks", title, make, short, 1.0))
    return plans


class _Ours:
    """A chain forward and backward, with weights in the maps' format."""

    def __init__(self, network: nn.Module, x: Tensor, upstream: Tensor, groups: int) -> None:
        self.network, _ = narrowed(network, x.dtype)
        self._inputs = (x, groups)
        self._upstream = upstream
        self._wanted = [p for p in self.network.parameters() if p.requires_grad]

    def __call__(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        out: Tensor = self.network(*self._inputs)
        return out, torch.autograd.grad(out, self._wanted, self._upstream)


def _chain(
    title: str,
    e: Experiment,
    which: str,
    precision: ComputedIn,
    batch: int,
    device: torch.device,
) -> Case:
    how = PRECISIONS[precision]
    dtype = how.computed
    let_cudnn_choose()
    shapes = [s for s in layer_shapes(e, batch) if s.network == which]
    groups, images, last = shapes[0].groups, shapes[0].images, shapes[-1]
    size = (e.channels, e.height, e.width) if which == "trunk" else (e.latents.input_width,)
    network = getattr(InfoGAN(e), which).to(device)
    widen(network, dtype)
    x = _laid_out(randn(images, *size, device=device, dtype=dtype).float())
    out = (last.result[2], *last.result[:2])
    flat = last.layer.gather.flat and last.layer.shape is None
    upstream = _laid_out(
        randn(images, *(out[:1] if flat else out), device=device, dtype=dtype, seed=2).float()
    )
    ours = _Ours(network, x.to(dtype), upstream.to(dtype), groups)

    def peer(
        of: torch.dtype,
        autocast: torch.dtype | None = None,
        memory: torch.memory_format = torch.contiguous_format,
        *,
        compiled: bool = False,
    ) -> ForwardBackward:
        theirs = plain(e, which, device)
        copy_parameters(network, theirs)
        theirs.to(of).to(memory_format=memory)  # type: ignore[call-overload]
        maps = [
            tuple(_laid_out(part, memory) for part in t.to(to).chunk(groups))
            for t, to in ((x, of), (upstream, autocast or of))
        ]
        return ForwardBackward(theirs, maps[0], maps[1], autocast, compiled=compiled)

    def at_its_best(*, compiled: bool = False) -> ForwardBackward:
        autocast = None if dtype == torch.float32 else dtype
        return peer(torch.float32, autocast, torch.channels_last, compiled=compiled)

    def check() -> None:
        with how.arithmetic():
            mine_out, mine = ours()
            sides = [at_its_best()(), peer(true_dtype(dtype))()]
            names = [n for n, p in network.named_parameters() if p.requires_grad]
            found = [(torch.cat(parts).detach(), gradients) for parts, gradients in sides]
            named = [
                {"out": result.detach(), **dict(zip(names, gradients, strict=True))}
                for result, gradients in [(mine_out, mine), *found]
            ]
            check_accuracy(named[0], named[1], named[2], dtype, kinks=True)

    more = {}
    others: dict[str, Run] = {EAGER: peer(torch.float32), BEST: at_its_best()}
    if device.type == "cuda":
        forget_compiled()
        others[COMPILED] = at_its_best(compiled=True)
    else:
        more["left out"] = f"{COMPILED}: a minute of compiling each"
    # Forward and by the weight in every layer, by the input in all but the first.
    ways = [2 if s.number == 1 else 3 for s in shapes]
    return Case(
        "blocks",
        title,
        ours,
        others,
        check,
        e.name,
        precision,
        batch,
        sum(way * s.flops for way, s in zip(ways, shapes, strict=True)),
        sum(way * s.values for way, s in zip(ways, shapes, strict=True)) * dtype.itemsize,
        more=more,
    )


def _laid_out(t: Tensor, memory: torch.memory_format = torch.channels_last) -> Tensor:
    return t.contiguous(memory_format=memory) if t.dim() == 4 else t.contiguous()


def widen(network: nn.Module, dtype: torch.dtype) -> None:
    """Give weights the scale that keeps activations near 1, in values that a dtype holds.

    The first maps of the paper's 0.02 are all but constant; batch norm then divides rounding
    errors by next to nothing, and on which side of a kink they fall is chance.
    """
    source = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            drawn = torch.randn(parameter.shape, generator=source) / parameter[0].numel() ** 0.5
            parameter.data.copy_(drawn.to(dtype))


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters of a network of ours into the same one in torch.nn, in its order."""
    with torch.no_grad():
        for one, other in zip(source.parameters(), target.parameters(), strict=True):
            other.copy_(one)
