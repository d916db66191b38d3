"""A layer's product, forward and both gradients, and on a CPU its batch norm and activation.

Products are our kernels on a GPU and ATen's on a CPU, where batch norm and activation follow in
C++; on a GPU those are part of the products.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.accuracy import check_accuracy
from bench.baselines import BEST, EAGER, benchmark_cudnn
from bench.baselines import ops as baselines
from bench.cases import Case, Planned, Setting, plan
from bench.cases.shapes import LayerShape, batch_on, layer_shapes
from bench.timing.clock import Run
from fastinfogan import experiments
from fastinfogan.engine.config import PRECISIONS, ComputedIn
from fastinfogan_kernels.conv_block import cpu_backend, ops
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.implicit_gemm import Epilogue
from fastinfogan_kernels.conv_block.layers import aten_convolution, aten_gradients
from fastinfogan_kernels.runtime.launch import nbytes

FORWARD, BACKWARD = "forward", "backward"
PASSES = (FORWARD, "data gradient", "weight gradient")
ALL = "forward and gradients"
"""One after the other; without a data gradient in layers that read images, or noise and code."""

Runs = tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[], Tensor]]
"""In the order of `PASSES`."""


def planned_layers(
    device: torch.device,
    names: Sequence[str],
    precisions: Sequence[ComputedIn],
    batch: int | None = None,
) -> list[Planned]:
    """Plan every layer's cases, each shape once; see `ops.planned`.

    On a CPU products in the first precision alone, and all passes as one, as they are ATen's;
    norms in fp32 for mnist alone.
    """
    plans: dict[Hashable, Planned] = {}
    for name in names:
        e, rows = experiments.get(name), batch or batch_on(device, name)
        for shape in layer_shapes(e, rows):
            short = name == "mnist" and shape.network == "trunk"
            for precision in precisions:
                for key, title, make in _of_layer(device, name, shape, precision, precisions[0]):
                    title = f"{title}, {precision}"
                    planned = plan(make, "ops", title, e, precision, rows, short=short, budget=0.4)
                    plans.setdefault((*key, precision), planned)
    return list(plans.values())


def _of_layer(
    device: torch.device, name: str, shape: LayerShape, precision: ComputedIn, first: ComputedIn
) -> Iterator[tuple[tuple[Hashable, ...], str, Callable[[Setting], Case]]]:
    """Give what makes two cases the same, a title and a maker, of each of a layer's cases."""
    layer = shape.layer
    on_cpu = device.type == "cpu"
    normalised = layer.norm and layer.activation == "leaky_relu"
    if on_cpu and normalised and (name == "mnist" or precision == first):
        for which in (FORWARD, BACKWARD):
            groups = ", two groups" if shape.groups == 2 else ""
            size = "x".join(map(str, (shape.images, *shape.result)))
            key = (shape.images, shape.result, shape.groups, which)
            title = f"batch norm + activation {which}, {name} {size}{groups}"
            yield key, title, partial(_norm, shape=shape, which=which)
    if on_cpu and precision != first:
        return
    for which in (ALL,) if on_cpu else PASSES:
        if passes := _passes(shape, which):
            key = (layer.geometry, shape.weight, shape.images, which)
            yield (
                key,
                f"{which}, {name} {shape.title}",
                partial(_product, shape=shape, which=passes),
            )


def _passes(shape: LayerShape, which: str) -> list[str]:
    """List the passes of a case; nothing needs the gradient by images, or by noise and code."""
    needed = [each for each in PASSES if not (each == "data gradient" and shape.number == 1)]
    return [each for each in needed if which in (each, ALL)]


def _product(at: Setting, shape: LayerShape, which: Sequence[str]) -> Case:
    dtype, geometry = at.dtype, shape.layer.geometry
    benchmark_cudnn()
    x, dy = at.randn(shape.images, *shape.source), at.randn(shape.images, *shape.result, seed=2)
    weight = at.randn(*shape.weight, seed=3) / (shape.flops / 2 / dy.numel()) ** 0.5
    if weight.dim() == 4:
        weight = weight.to(memory_format=torch.channels_last)
    bias = at.randn(shape.result[2], dtype=torch.float32, seed=4) * 0.1
    on_gpu = at.device.type == "cuda"
    runs = _chosen((_by_kernels if on_gpu else _by_aten)(x, dy, weight, bias, shape), which)

    def baseline(of: torch.dtype, memory: torch.memory_format) -> dict[str, Callable[[], Tensor]]:
        product = baselines.Product(geometry)
        if geometry.flat:
            inputs, outputs, w = x.flatten(1).to(of), dy.flatten(1).to(of), weight.to(of)
        else:
            inputs, outputs = (_nchw(t).to(of).contiguous(memory_format=memory) for t in (x, dy))
            w = weight.to(of, memory_format=memory)
        b = bias.to(of)
        found = (
            lambda: product.forward(inputs, w, b),
            lambda: product.input_gradient(outputs, inputs, w),
            lambda: product.weight_gradient(outputs, inputs, w),
        )
        return _chosen(found, which)

    def results(of: torch.dtype) -> dict[str, Tensor]:
        found = {each: run() for each, run in baseline(of, torch.channels_last).items()}
        return {
            each: t.permute(0, 2, 3, 1) if t.dim() == 4 and each != PASSES[2] else t
            for each, t in found.items()
        }

    def check() -> None:
        with PRECISIONS[at.precision].arithmetic():
            actual = {each: run() for each, run in runs.items()}
            check_accuracy(actual, results(dtype), results(at.true_dtype), dtype)

    others: dict[str, Run] = {EAGER: _in_a_row(baseline(torch.float32, torch.contiguous_format))}
    more = {"layer": f"{shape.network} {shape.number}"}
    if on_gpu:
        others[BEST] = _in_a_row(baseline(dtype, torch.channels_last))
    else:
        more["left out"] = f"{BEST}: it is the same call of ATen"
    return at.case(
        _in_a_row(runs), others, check, flops=len(which) * shape.flops,
        bytes=len(which) * shape.values * dtype.itemsize, more=more,
    )  # fmt: skip


def _chosen(runs: Runs, which: Sequence[str]) -> dict[str, Callable[[], Tensor]]:
    return {name: run for name, run in zip(PASSES, runs, strict=True) if name in which}


def _in_a_row(runs: Mapping[str, Callable[[], Tensor]]) -> Run:
    """Run them one after the other; a single one is returned as it is."""
    found = list(runs.values())
    if len(found) == 1:
        return found[0]

    def run() -> None:
        for each in found:
            each()

    return run


def _by_kernels(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, shape: LayerShape) -> Runs:
    geometry = shape.layer.geometry
    return (
        lambda: ops.convolve(Deferred(x), weight, geometry, 1, Epilogue(bias))[0],
        lambda: ops.convolve(Deferred(dy), weight, geometry, 1, backward=True)[0],
        lambda: ops.convolve_weight_gradient(Deferred(x), Deferred(dy), weight, geometry, 1),
    )


def _by_aten(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, shape: LayerShape) -> Runs:
    geometry = shape.layer.geometry

    def gradient(index: int) -> Tensor:
        found = aten_gradients(
            x, dy, weight, geometry, of_input=index == 0, of_weight=index == 1
        )[index]  # fmt: skip
        assert found is not None
        return found

    return (
        lambda: aten_convolution(x, weight, bias, geometry),
        partial(gradient, 0),
        partial(gradient, 1),
    )


def _nchw(t: Tensor) -> Tensor:
    return t.permute(0, 3, 1, 2)


def _norm(at: Setting, shape: LayerShape, which: str) -> Case:
    layer, groups, features = shape.layer, shape.groups, shape.result[2]
    y, dout = (at.randn(shape.images, *shape.result, seed=seed) for seed in (1, 2))
    gamma, beta = (at.randn(features, dtype=torch.float32, seed=seed) for seed in (3, 4))
    gamma = 1 + 0.1 * gamma
    mean, var = torch.zeros_like(beta), torch.ones_like(beta)
    slope = layer.loaded_slope

    def forward() -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = cpu_backend.norm_activation(
            y, gamma, beta, mean, var, groups, layer.momentum, layer.eps, "leaky_relu", slope
        )
        return found

    _, params = forward()

    def backward() -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = cpu_backend.norm_activation_gradient(
            dout, y, params, gamma, "leaky_relu", slope
        )
        return found

    def composed(of: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        wide = torch.promote_types(of, torch.float32)
        leaves = [
            t.to(dtype).clone().requires_grad_()
            for t, dtype in ((_nchw(y), of), (gamma, wide), (beta, wide))
        ]
        running = [t.to(wide).clone() for t in (mean, var)]
        return baselines.norm_activation(*leaves, *running, groups, slope), leaves  # type: ignore[arg-type]

    out, leaves = composed(at.dtype)

    def forward_by_torch() -> object:
        detached = (leaf.detach() for leaf in leaves)
        return baselines.norm_activation(*detached, mean, var, groups, slope)  # type: ignore[arg-type]

    def backward_by_torch() -> object:
        return torch.autograd.grad(out, leaves, _nchw(dout), retain_graph=True)

    def results(of: torch.dtype) -> dict[str, Tensor]:
        found, of_leaves = composed(of)
        if which == FORWARD:
            return {"out": found.detach()}
        gradients = torch.autograd.grad(found, of_leaves, _nchw(dout).to(of))
        return dict(zip(("dy", "dgamma", "dbeta"), gradients, strict=True))

    def check() -> None:
        actual = {"out": _nchw(forward()[0])}
        if which == BACKWARD:
            dy, dgamma, dbeta = backward()
            actual = {"dy": _nchw(dy), "dgamma": dgamma, "dbeta": dbeta}
        check_accuracy(actual, results(at.dtype), results(torch.float64), at.dtype, kinks=True)

    if which == FORWARD:
        return at.case(forward, {EAGER: forward_by_torch}, check, bytes=2 * nbytes(y))
    return at.case(backward, {EAGER: backward_by_torch}, check, bytes=3 * nbytes(y))
