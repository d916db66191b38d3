"""The product of each layer, forward and both ways back: on a GPU our kernels, on a CPU ATen's."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.accuracy import check_accuracy
from bench.baselines import BEST, EAGER, let_cudnn_choose
from bench.baselines.ops import Product
from bench.cases import Case, Planned
from bench.cases.shapes import LayerShape, batch_on, layer_shapes
from bench.timing.clock import Run
from fastinfogan import experiments
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan_kernels.conv_block import aten, candidates
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.implicit_gemm import Epilogue

WAYS = ("forward", "data gradient", "weight gradient")
ALL = "layer there and back"
"""One after the other; two in the layers that read images, or noise and code."""


def planned_products(
    device: torch.device,
    names: Sequence[str],
    precisions: Sequence[ComputedIn],
    batch: int | None = None,
) -> list[Planned]:
    """Every layer's, each shape once; see `ops.planned`.

    On a CPU in the first precision alone, and forward and both gradients as one: they are ATen's.
    """
    plans, seen = [], set()
    for name in names:
        rows = batch or batch_on(device, name)
        for shape in layer_shapes(experiments.get(name), rows):
            for precision in precisions if device.type == "cuda" else precisions[:1]:
                for way in WAYS if device.type == "cuda" else (ALL,):
                    key = (shape.layer.gather, shape.weight, shape.images, way, precision)
                    # Nobody wants the gradient by images, or by noise and code.
                    unwanted = way == "data gradient" and shape.number == 1
                    if key in seen or unwanted:
                        continue
                    seen.add(key)
                    title = f"{way}, {name} {shape.title}, {precision}"
                    make = partial(_product, title, name, shape, precision, rows, way)
                    short = name == "mnist" and shape.network == "trunk"
                    plans.append(Planned("ops", title, make, short, 0.4))
    return plans


def _product(
    title: str,
    name: str,
    shape: LayerShape,
    precision: ComputedIn,
    batch: int,
    way: str,
    device: torch.device,
) -> Case:
    dtype = PRECISIONS[precision].computed
    let_cudnn_choose()
    gather = shape.layer.gather
    source = torch.Generator().manual_seed(1)

    def drawn(*sides: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(sides, generator=source).to(device, of)

    x = drawn(shape.images, *shape.source)
    dy = drawn(shape.images, *shape.result)
    weight = drawn(*shape.weight) / (shape.flops / 2 / dy.numel()) ** 0.5
    if weight.dim() == 4:
        weight = weight.to(memory_format=torch.channels_last)
    bias = drawn(shape.result[2], of=torch.float32) * 0.1
    ways = [w for w in WAYS if way in (w, ALL) and not (w == WAYS[1] and shape.number == 1)]
    by = _by_kernels if device.type == "cuda" else _by_aten
    runs = {each: by(x, dy, weight, bias, shape, each) for each in ways}

    def peer(of: torch.dtype, memory: torch.memory_format) -> dict[str, Callable[[], Tensor]]:
        theirs, maps = Product(gather), [x, dy]
        if gather.flat:
            maps = [t.flatten(1).to(of) for t in maps]
            w = weight.to(of)
        else:
            maps = [t.permute(0, 3, 1, 2).to(of).contiguous(memory_format=memory) for t in maps]
            w = weight.to(of, memory_format=memory)
        b = bias.to(of)
        found = (
            lambda: theirs.forward(maps[0], w, b),
            lambda: theirs.input_gradient(maps[1], maps[0], w),
            lambda: theirs.weight_gradient(maps[1], maps[0], w),
        )
        return {each: run for each, run in zip(WAYS, found, strict=True) if each in ways}

    def results(of: torch.dtype) -> dict[str, Tensor]:
        found = {each: run() for each, run in peer(of, torch.channels_last).items()}
        return {
            each: t.permute(0, 2, 3, 1) if t.dim() == 4 and each != WAYS[2] else t
            for each, t in found.items()
        }

    def check() -> None:
        true = torch.float64 if dtype == torch.float32 else torch.float32
        with PRECISIONS[precision].arithmetic():
            mine = {each: run() for each, run in runs.items()}
            check_accuracy(mine, results(dtype), results(true), dtype)

    others: dict[str, Run] = {EAGER: _in_a_row(peer(torch.float32, torch.contiguous_format))}
    more = {"layer": f"{shape.network} {shape.number}"}
    if device.type == "cuda":
        others[BEST] = _in_a_row(peer(dtype, torch.channels_last))
    else:
        more["left out"] = f"{BEST}: it is the same call of ATen"
    return Case(
        "ops", title, _in_a_row(runs), others, check, name, precision, batch,
        len(ways) * shape.flops, len(ways) * shape.values * dtype.itemsize, more=more,
    )  # fmt: skip


def _in_a_row(runs: dict[str, Callable[[], Tensor]]) -> Run:
    """One of them alone as it is."""
    found = list(runs.values())
    if len(found) == 1:
        return found[0]

    def run() -> None:
        for each in found:
            each()

    return run


def _by_kernels(
    x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, shape: LayerShape, way: str
) -> Callable[[], Tensor]:
    gather = shape.layer.gather
    if way == "forward":
        return lambda: candidates.multiply(Deferred(x), weight, gather, 1, Epilogue(bias))[0]
    if way == "data gradient":
        return lambda: candidates.multiply(Deferred(dy), weight, gather, 1, backward=True)[0]
    return lambda: candidates.weight_gradient(Deferred(x), Deferred(dy), weight, gather, 1)


def _by_aten(
    x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, shape: LayerShape, way: str
) -> Callable[[], Tensor]:
    gather = shape.layer.gather

    def gradient() -> Tensor:
        of_input = way == "data gradient"
        found = aten.gradients(x, dy, weight, gather, of_input=of_input, of_weight=not of_input)
        wanted = found[0 if of_input else 1]
        assert wanted is not None
        return wanted

    return gradient if way != "forward" else lambda: aten.product(x, weight, bias, gather)
