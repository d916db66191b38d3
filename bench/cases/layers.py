"""A layer's product, forward and both gradients, on a GPU; its batch norm and activation on a CPU.

On a CPU products are ATen's, and batch norm and activation follow in C++; on a GPU those are part
of the products.
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
from fastinfogan import experiments
from fastinfogan.engine.config import PRECISIONS, ComputedIn
from fastinfogan_kernels.conv_block import cpu_backend, ops
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.implicit_gemm import Epilogue
from fastinfogan_kernels.runtime.launch import nbytes

FORWARD, BACKWARD = "forward", "backward"
PASSES = (FORWARD, "data gradient", "weight gradient")


def planned_layers(
    device: torch.device,
    names: Sequence[str],
    precisions: Sequence[ComputedIn],
    batch: int | None = None,
) -> list[Planned]:
    """Plan every layer's cases, each shape once; see `ops.planned`.

    On a CPU those in fp32 for mnist alone, unless fp32 is the first precision.
    """
    of_layer = _norms if device.type == "cpu" else _products
    plans: dict[Hashable, Planned] = {}
    for name in names:
        e, rows = experiments.get(name), batch or batch_on(device, name)
        for shape in layer_shapes(e, rows):
            short = name == "mnist" and shape.network == "trunk"
            for precision in precisions:
                if device.type == "cpu" and name != "mnist" and precision != precisions[0]:
                    continue
                for key, title, make in of_layer(name, shape):
                    title = f"{title}, {precision}"
                    planned = plan(make, "ops", title, e, precision, rows, short=short, budget=0.4)
                    plans.setdefault((*key, precision), planned)
    return list(plans.values())


Cases = Iterator[tuple[tuple[Hashable, ...], str, Callable[[Setting], Case]]]
"""What makes two cases the same, a title and a maker, of each of a layer's cases."""


def _norms(name: str, shape: LayerShape) -> Cases:
    if not (shape.layer.norm and shape.layer.activation == "leaky_relu"):
        return
    groups = ", two groups" if shape.groups == 2 else ""
    size = "x".join(map(str, (shape.images, *shape.result)))
    for which in (FORWARD, BACKWARD):
        title = f"batch norm + activation {which}, {name} {size}{groups}"
        key = (shape.images, shape.result, shape.groups, which)
        yield key, title, partial(_norm, shape=shape, which=which)


def _products(name: str, shape: LayerShape) -> Cases:
    for which in PASSES:
        # Nothing needs the gradient by images, or by noise and code.
        if which != "data gradient" or shape.number > 1:
            key = (shape.layer.geometry, shape.weight, shape.images, which)
            title = f"{which}, {name} {shape.title}"
            yield key, title, partial(_product, shape=shape, which=which)


def _product(at: Setting, shape: LayerShape, which: str) -> Case:
    dtype, geometry = at.dtype, shape.layer.geometry
    benchmark_cudnn()
    x, dy = at.randn(shape.images, *shape.source), at.randn(shape.images, *shape.result, seed=2)
    weight = at.randn(*shape.weight, seed=3) / (shape.flops / 2 / dy.numel()) ** 0.5
    if weight.dim() == 4:
        weight = weight.to(memory_format=torch.channels_last)
    bias = at.randn(shape.result[2], dtype=torch.float32, seed=4) * 0.1
    runs: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: ops.convolve(Deferred(x), weight, geometry, 1, Epilogue(bias))[0],
        "data gradient": lambda: ops.convolve(Deferred(dy), weight, geometry, 1, backward=True)[0],
        "weight gradient": lambda: ops.convolve_weight_gradient(
            Deferred(x), Deferred(dy), weight, geometry, 1
        ),
    }

    def baseline(of: torch.dtype, memory: torch.memory_format) -> Callable[[], Tensor]:
        product = baselines.Product(geometry)
        if geometry.flat:
            inputs, outputs, w = x.flatten(1).to(of), dy.flatten(1).to(of), weight.to(of)
        else:
            inputs, outputs = (_nchw(t).to(of).contiguous(memory_format=memory) for t in (x, dy))
            w = weight.to(of, memory_format=memory)
        b = bias.to(of)
        found: dict[str, Callable[[], Tensor]] = {
            "forward": lambda: product.forward(inputs, w, b),
            "data gradient": lambda: product.input_gradient(outputs, inputs, w),
            "weight gradient": lambda: product.weight_gradient(outputs, inputs, w),
        }
        return found[which]

    def result(of: torch.dtype) -> dict[str, Tensor]:
        t = baseline(of, torch.channels_last)()
        return {which: t.permute(0, 2, 3, 1) if t.dim() == 4 and which != PASSES[2] else t}

    def check() -> None:
        with PRECISIONS[at.precision].arithmetic():
            check_accuracy({which: runs[which]()}, result(dtype), result(at.true_dtype), dtype)

    others = {
        EAGER: baseline(torch.float32, torch.contiguous_format),
        BEST: baseline(dtype, torch.channels_last),
    }
    return at.case(
        runs[which], others, check, flops=shape.flops, bytes=shape.values * dtype.itemsize,
        more={"layer": f"{shape.network} {shape.number}"},
    )  # fmt: skip


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
