"""A layer's product, forward and both gradients, and on a CPU its batch norm and activation.

Products are our kernels on a GPU and ATen's on a CPU, where batch norm and activation follow in
C++; on a GPU those are part of the products.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
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
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan_kernels.conv_block import aten, cpu_epilogue, ops
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.implicit_gemm import Epilogue
from fastinfogan_kernels.runtime.launch import nbytes

PASSES = ("forward", "data gradient", "weight gradient")
ALL = "forward and gradients"
"""One after the other; without a data gradient in layers that read images, or noise and code."""


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
    if on_cpu and layer.activation == "leaky_relu" and (name == "mnist" or precision == first):
        for which in ("forward", "backward"):
            what = "batch norm + activation" if layer.norm else "activation alone"
            groups = ", two groups" if shape.groups == 2 else ""
            size = "x".join(map(str, (shape.images, *shape.result)))
            make = partial(_norm if layer.norm else _activation, shape=shape, which=which)
            key = (shape.images, shape.result, shape.groups, layer.norm, which)
            yield key, f"{what} {which}, {name} {size}{groups}", make
    if on_cpu and precision != first:
        return
    for which in (ALL,) if on_cpu else PASSES:
        if which == "data gradient" and shape.number == 1:
            continue  # nothing needs the gradient by images, or by noise and code
        key = (layer.geometry, shape.weight, shape.images, which)
        make = partial(_product, shape=shape, which=which)
        yield key, f"{which}, {name} {shape.title}", make


def _product(at: Setting, shape: LayerShape, which: str) -> Case:
    dtype, geometry = at.dtype, shape.layer.geometry
    benchmark_cudnn()
    source = torch.Generator().manual_seed(1)

    def drawn(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=source).to(at.device, of)

    x = drawn(shape.images, *shape.source)
    dy = drawn(shape.images, *shape.result)
    weight = drawn(*shape.weight) / (shape.flops / 2 / dy.numel()) ** 0.5
    if weight.dim() == 4:
        weight = weight.to(memory_format=torch.channels_last)
    bias = drawn(shape.result[2], of=torch.float32) * 0.1
    passes = [p for p in PASSES if which in (p, ALL) and not (p == PASSES[1] and shape.number == 1)]
    by = _by_kernels if at.device.type == "cuda" else _by_aten
    runs = {each: by(x, dy, weight, bias, shape, each) for each in passes}

    def baseline(of: torch.dtype, memory: torch.memory_format) -> dict[str, Callable[[], Tensor]]:
        product = baselines.Product(geometry)
        if geometry.flat:
            inputs, outputs = (t.flatten(1).to(of) for t in (x, dy))
            w = weight.to(of)
        else:
            inputs, outputs = (_nchw(t).to(of).contiguous(memory_format=memory) for t in (x, dy))
            w = weight.to(of, memory_format=memory)
        b = bias.to(of)
        found = (
            lambda: product.forward(inputs, w, b),
            lambda: product.input_gradient(outputs, inputs, w),
            lambda: product.weight_gradient(outputs, inputs, w),
        )
        return {each: run for each, run in zip(PASSES, found, strict=True) if each in passes}

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
    if at.device.type == "cuda":
        others[BEST] = _in_a_row(baseline(dtype, torch.channels_last))
    else:
        more["left out"] = f"{BEST}: it is the same call of ATen"
    return at.case(
        _in_a_row(runs), others, check, flops=len(passes) * shape.flops,
        bytes=len(passes) * shape.values * dtype.itemsize, more=more,
    )  # fmt: skip


def _in_a_row(runs: dict[str, Callable[[], Tensor]]) -> Run:
    """Run them one after the other; a single one is returned as it is."""
    found = list(runs.values())
    if len(found) == 1:
        return found[0]

    def run() -> None:
        for each in found:
            each()

    return run


def _by_kernels(
    x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, shape: LayerShape, which: str
) -> Callable[[], Tensor]:
    geometry = shape.layer.geometry
    if which == "forward":
        return lambda: ops.convolve(Deferred(x), weight, geometry, 1, Epilogue(bias))[0]
    if which == "data gradient":
        return lambda: ops.convolve(Deferred(dy), weight, geometry, 1, backward=True)[0]
    return lambda: ops.convolve_weight_gradient(Deferred(x), Deferred(dy), weight, geometry, 1)


def _by_aten(
    x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, shape: LayerShape, which: str
) -> Callable[[], Tensor]:
    geometry = shape.layer.geometry
    if which == "forward":
        return lambda: aten.convolution(x, weight, bias, geometry)
    of_input = which == "data gradient"

    def gradient() -> Tensor:
        found = aten.gradients(x, dy, weight, geometry, of_input=of_input, of_weight=not of_input)
        needed = found[0 if of_input else 1]
        assert needed is not None
        return needed

    return gradient


def _nchw(t: Tensor) -> Tensor:
    return t.permute(0, 3, 1, 2)


def _drawn(at: Setting, shape: LayerShape) -> tuple[Tensor, Tensor]:
    """Draw a layer's output and the gradient by what follows it."""
    source = torch.Generator().manual_seed(1)
    size = (shape.images, *shape.result)
    y, dout = (torch.randn(size, generator=source).to(at.device, at.dtype) for _ in range(2))
    return y, dout


def _norm(at: Setting, shape: LayerShape, which: str) -> Case:
    y, dout = _drawn(at, shape)
    layer, groups, features, device = shape.layer, shape.groups, shape.result[2], at.device
    source = torch.Generator().manual_seed(2)
    gamma, beta = (torch.randn(features, generator=source).to(device) for _ in range(2))
    gamma = 1 + 0.1 * gamma
    mean, var = torch.zeros(features, device=device), torch.ones(features, device=device)
    slope = layer.loaded_slope

    def forward() -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = cpu_epilogue.norm_activation(
            y, gamma, beta, mean, var, groups, layer.momentum, layer.eps, "leaky_relu", slope
        )
        return found

    _, params = forward()

    def backward() -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = cpu_epilogue.norm_activation_gradient(
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

    def torchs_forward() -> object:
        detached = (leaf.detach() for leaf in leaves)
        return baselines.norm_activation(*detached, mean, var, groups, slope)  # type: ignore[arg-type]

    def torchs_backward() -> object:
        return torch.autograd.grad(out, leaves, _nchw(dout), retain_graph=True)

    def results(of: torch.dtype) -> dict[str, Tensor]:
        found, of_leaves = composed(of)
        if which == "forward":
            return {"out": found.detach()}
        gradients = torch.autograd.grad(found, of_leaves, _nchw(dout).to(of))
        return dict(zip(("dy", "dgamma", "dbeta"), gradients, strict=True))

    def check() -> None:
        actual = {"out": _nchw(forward()[0])}
        if which == "backward":
            dy, dgamma, dbeta = backward()
            actual = {"dy": _nchw(dy), "dgamma": dgamma, "dbeta": dbeta}
        check_accuracy(actual, results(at.dtype), results(torch.float64), at.dtype, kinks=True)

    run, baseline = (forward, torchs_forward) if which == "forward" else (backward, torchs_backward)
    moved = (2 if which == "forward" else 3) * nbytes(y)
    return at.case(run, {EAGER: baseline}, check, bytes=moved)


def _activation(at: Setting, shape: LayerShape, which: str) -> Case:
    """Forward in place for both."""
    y, dout = _drawn(at, shape)
    slope = shape.layer.loaded_slope
    out = y.clone()
    cpu_epilogue.activation_(out, "leaky_relu", slope)
    leaf = y.clone().requires_grad_()
    by_torch = torch.nn.functional.leaky_relu(leaf, slope)

    def backward() -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = cpu_epilogue.activation_gradient(
            dout, out, "leaky_relu", slope, None
        )
        return found

    def results(of: torch.dtype) -> dict[str, Tensor]:
        x = y.to(of).requires_grad_()
        found = torch.nn.functional.leaky_relu(x, slope)
        (gradient,) = torch.autograd.grad(found, x, dout.to(of))
        return {"out": found.detach(), "dy": gradient}

    def check() -> None:
        actual = {"out": out, "dy": backward()[0]}
        check_accuracy(actual, results(at.dtype), results(torch.float64), at.dtype)

    run: Run = backward
    baseline: Run = partial(torch.autograd.grad, by_torch, leaf, dout, retain_graph=True)
    if which == "forward":
        run = partial(cpu_epilogue.activation_, y.clone(), "leaky_relu", slope)
        baseline = partial(torch.nn.functional.leaky_relu_, y.clone(), slope)
    moved = (2 if which == "forward" else 3) * nbytes(y)
    return at.case(run, {EAGER: baseline}, check, bytes=moved)
