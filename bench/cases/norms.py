"""Batch norm and activation, forward and backward, in C++ behind ATen's products: a CPU's alone.

On a GPU they are part of the products: statistics behind one, the rest in front of the next.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.accuracy import check_accuracy
from bench.baselines import EAGER
from bench.baselines import ops as peers
from bench.cases import Case, Planned
from bench.cases.shapes import LayerShape, batch_on, layer_shapes
from fastinfogan import experiments
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan_kernels.conv_block import cpu_epilogue
from fastinfogan_kernels.runtime.launch import nbytes

if TYPE_CHECKING:
    from bench.timing.clock import Run

_WAYS = ("forward", "backward")


def planned_norms(
    device: torch.device,
    names: Sequence[str],
    precisions: Sequence[ComputedIn],
    batch: int | None = None,
) -> list[Planned]:
    """Every layer's, each shape once; see `ops.planned`. In fp32 mnist's alone."""
    if device.type != "cpu":
        return []
    plans, seen = [], set()
    for name in names:
        rows = batch or batch_on(device, name)
        for shape in layer_shapes(experiments.get(name), rows):
            layer = shape.layer
            if layer.activation != "rectifier":
                continue
            for precision in precisions if name == "mnist" else precisions[:1]:
                for way in _WAYS:
                    key = (shape.images, shape.result, shape.groups, layer.norm, way, precision)
                    if key in seen:
                        continue
                    seen.add(key)
                    what = "batch norm + activation" if layer.norm else "activation alone"
                    groups = ", two groups" if shape.groups == 2 else ""
                    size = "x".join(map(str, (shape.images, *shape.result)))
                    title = f"{what} {way}, {name} {size}{groups}, {precision}"
                    make = _norm if layer.norm else _activation
                    plans.append(
                        Planned(
                            "ops",
                            title,
                            partial(make, title, name, shape, precision, rows, way),
                            name == "mnist" and shape.network == "trunk",
                            0.4,
                        )
                    )
    return plans


def _inputs(
    shape: LayerShape, precision: ComputedIn, device: torch.device
) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    dtype = PRECISIONS[precision].computed
    size = (shape.images, *shape.result)
    found = [torch.randn(size, generator=source).to(device, dtype) for _ in range(2)]
    return found[0], found[1]


def _maps(t: Tensor) -> Tensor:
    """As torch sees it, (N, C, H, W)."""
    return t.permute(0, 3, 1, 2)


def _norm(
    title: str,
    name: str,
    shape: LayerShape,
    precision: ComputedIn,
    batch: int,
    way: str,
    device: torch.device,
) -> Case:
    y, dout = _inputs(shape, precision, device)
    layer, groups, features, dtype = shape.layer, shape.groups, shape.result[2], y.dtype
    source = torch.Generator().manual_seed(2)
    gamma, beta = (torch.randn(features, generator=source).to(device) for _ in range(2))
    gamma = 1 + 0.1 * gamma
    mean, var = torch.zeros(features, device=device), torch.ones(features, device=device)
    slope = layer.loaded_slope

    def forward() -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = cpu_epilogue.norm_activation(
            y, gamma, beta, mean, var, groups, layer.momentum, layer.eps, "rectifier", slope
        )
        return found

    _, params = forward()

    def backward() -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = cpu_epilogue.norm_activation_gradient(
            dout, y, params, gamma, "rectifier", slope
        )
        return found

    def theirs(of: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        wide = torch.promote_types(of, torch.float32)
        leaves = [t.to(k).clone().requires_grad_() for t, k in
                  ((_maps(y), of), (gamma, wide), (beta, wide))]  # fmt: skip
        running = [t.to(wide).clone() for t in (mean, var)]
        return peers.norm_activation(*leaves, *running, groups, slope), leaves  # type: ignore[arg-type]

    out, leaves = theirs(dtype)

    def torchs_forward() -> object:
        return peers.norm_activation(*(leaf.detach() for leaf in leaves), mean, var, groups, slope)  # type: ignore[arg-type]

    def torchs_backward() -> object:
        return torch.autograd.grad(out, leaves, _maps(dout), retain_graph=True)

    def results(of: torch.dtype) -> dict[str, Tensor]:
        found, of_leaves = theirs(of)
        if way == "forward":
            return {"out": found.detach()}
        gradients = torch.autograd.grad(found, of_leaves, _maps(dout).to(of))
        return dict(zip(("dy", "dgamma", "dbeta"), gradients, strict=True))

    def check() -> None:
        mine = {"out": _maps(forward()[0])}
        if way == "backward":
            dy, dgamma, dbeta = backward()
            mine = {"dy": _maps(dy), "dgamma": dgamma, "dbeta": dbeta}
        check_accuracy(mine, results(dtype), results(torch.float64), dtype, kinks=True)

    ours, peer = (forward, torchs_forward) if way == "forward" else (backward, torchs_backward)
    return Case(
        "ops", title, ours, {EAGER: peer}, check, name, precision, batch,
        bytes=(2 if way == "forward" else 3) * nbytes(y),
    )  # fmt: skip


def _activation(
    title: str,
    name: str,
    shape: LayerShape,
    precision: ComputedIn,
    batch: int,
    way: str,
    device: torch.device,
) -> Case:
    """Forward in place on both sides."""
    y, dout = _inputs(shape, precision, device)
    slope = shape.layer.loaded_slope
    out = y.clone()
    cpu_epilogue.activation_(out, "rectifier", slope)
    leaf = y.clone().requires_grad_()
    theirs = torch.nn.functional.leaky_relu(leaf, slope)

    def backward() -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = cpu_epilogue.activation_gradient(
            dout, out, "rectifier", slope, None
        )
        return found

    def torchs_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(theirs, leaf, dout, retain_graph=True)

    def results(of: torch.dtype) -> dict[str, Tensor]:
        x = y.to(of).requires_grad_()
        found = torch.nn.functional.leaky_relu(x, slope)
        (gradient,) = torch.autograd.grad(found, x, dout.to(of))
        return {"out": found.detach(), "dy": gradient}

    def check() -> None:
        mine = {"out": out, "dy": backward()[0]}
        check_accuracy(mine, results(y.dtype), results(torch.float64), y.dtype)

    ours: Run = backward
    peer: Run = torchs_backward
    if way == "forward":
        one, other = y.clone(), y.clone()
        ours = partial(cpu_epilogue.activation_, one, "rectifier", slope)
        peer = partial(torch.nn.functional.leaky_relu_, other, slope)
    return Case(
        "ops", title, ours, {EAGER: peer}, check, name, precision, batch,
        bytes=(2 if way == "forward" else 3) * nbytes(y),
    )  # fmt: skip
