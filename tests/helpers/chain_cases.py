"""Chains for tests, their tensors, and one forward and backward pass of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.layers import (
    LINEAR,
    ConvGeometry,
    Images,
    Layer,
    LayerTensors,
    Window,
)

Run = Callable[..., Tensor]


def conv(
    side: int, kernel: int = 4, stride: int = 2, pad: tuple[int, int] = (1, 1)
) -> ConvGeometry:
    """A convolution's geometry on a square feature map."""
    return ConvGeometry(Window(side, side, kernel, stride, *pad), False)


def upconv(side: int, kernel: int = 4, stride: int = 2) -> ConvGeometry:
    """A transposed convolution's geometry on a square feature map."""
    total = kernel - stride
    big = side * stride
    return ConvGeometry(Window(big, big, kernel, stride, total // 2, total - total // 2), True)


@dataclass(frozen=True)
class Case:
    """A chain and its input.

    Attributes:
        layers: the chain.
        channels: of the input, then of each layer's output.
        side: of the input; 0 for rows.
        batch: images.
        groups: statistics groups.
    """

    layers: tuple[Layer, ...]
    channels: tuple[int, ...]
    side: int
    batch: int = 6
    groups: int = 1

    def input(self) -> Tensor:
        shape = (self.batch, self.channels[0])
        if self.side:
            shape += (self.side, self.side)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def tensors(self) -> list[LayerTensors]:
        source = torch.Generator().manual_seed(2)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=source)

        found, channels, side = [], self.channels[0], self.side
        for layer, out in zip(self.layers, self.channels[1:], strict=True):
            k = layer.geometry.window.kernel
            features = out * (layer.shape[0] * layer.shape[1] if layer.shape else 1)
            if layer.flat:
                depth = channels * max(side * side, 1)
                weight = draw(features, depth) / depth**0.5
                side = layer.shape[0] if layer.shape else 0
            elif layer.geometry.transposed:
                weight = draw(channels, out, k, k) / (channels * k * k / 2) ** 0.5
                side = layer.geometry.window.height
            else:
                weight = draw(out, channels, k, k) / (channels * k * k) ** 0.5
                side = layer.geometry.window.rows
            if weight.dim() == 4:
                weight = weight.to(memory_format=torch.channels_last)
            bias = draw(features) * 0.1
            if layer.norm:
                affine = (1 + 0.1 * draw(features), 0.1 * draw(features))
                running = (draw(features), draw(features).abs() + 0.5)
                found.append(LayerTensors(weight, bias, *affine, *running))
            else:
                found.append(LayerTensors(weight, bias))
            channels = out
        return found


def outcome(
    run: Run,
    case: Case,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    source: Tensor | Images | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Run a chain forward and backward.

    Args:
        run: fused_chain, native_chain or reference_chain.
        case: the chain.
        dtype: of the input.
        weight_dtype: of the tensors.
        source: the input, if not the case's.
        device: where it runs.

    Returns:
        "out", gradients of "input" and "0.weight" and so on, "0.running_mean" and so on; in fp64 on
        the CPU.
    """
    x = case.input() if source is None else source
    if isinstance(x, Tensor):
        x = x.detach().to(device, dtype, copy=True).requires_grad_()
    else:
        index = None if x.index is None else x.index.to(device)
        x = replace(x, data=x.data.to(device), index=index)
    tensors = [
        LayerTensors(
            *(
                None
                if t is None
                else t.to(device, weight_dtype, copy=True).requires_grad_(
                    name.startswith(("w", "b", "g"))
                )
                for name, t in zip(LayerTensors._fields, each, strict=True)
            )
        )
        for each in case.tensors()
    ]
    out = run(x, case.layers, tensors, case.groups)
    generator = torch.Generator().manual_seed(3)
    dout = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    out.backward(dout.to(device, out.dtype))
    found: dict[str, Tensor | None] = {"out": out.detach()}
    if isinstance(x, Tensor):
        found["input"] = x.grad
    for i, (layer, each) in enumerate(zip(case.layers, tensors, strict=True)):
        for name, t in zip(LayerTensors._fields, each, strict=True):
            if t is None:
                continue
            if name.startswith("running"):
                found[f"{i}.{name}"] = t
            elif not (layer.norm and name == "bias"):  # exactly zero; in torch rounding noise
                found[f"{i}.{name}"] = t.grad
    return {name: t.detach().double().cpu() for name, t in found.items() if t is not None}


def every_window() -> dict[str, Case]:
    """One block of every window, after another block, with two groups and odd channels."""
    windows = {
        "4x4 stride 2": conv(8),
        "4x4 stride 1 same": conv(6, 4, 1, (1, 2)),
        "3x3 stride 1": conv(6, 3, 1),
        "3x3 stride 2": conv(8, 3, 2),
        "3x3 stride 2, odd side": conv(7, 3, 2),
        "5x5 stride 1 pad 2": conv(6, 5, 1, (2, 2)),
        "1x1": conv(6, 1, 1, (0, 0)),
        "up 4x4 stride 2": upconv(5),
        "up 4x4 stride 1": upconv(5, 4, 1),
        "up 2x2 stride 2": upconv(4, 2, 2),
    }
    cases = {}
    for name, geometry in windows.items():
        side = geometry.input_size[0]
        first = Layer(conv(side, 1, 1, (0, 0)), True, slope=0.2)
        cases[name] = Case((first, Layer(geometry, True)), (5, 19, 37), side, 6, 2)
    return cases


def experiments_at_small_widths() -> dict[str, Case]:
    """The trunks and generators of MNIST, SVHN and Chairs."""
    relu = {"slope": 0.0}
    return {
        "mnist trunk": Case(
            (Layer(conv(28), False), Layer(conv(14), True), Layer(LINEAR, True)),
            (1, 8, 20, 33), 28, 6, 2,
        ),
        "mnist generator": Case(
            (
                Layer(LINEAR, True, **relu),  # type: ignore[arg-type]
                Layer(LINEAR, True, **relu, shape=(7, 7, 24)),  # type: ignore[arg-type]
                Layer(upconv(7), True, **relu),  # type: ignore[arg-type]
                Layer(upconv(14), False, "sigmoid"),
            ),
            (12, 32, 24, 10, 1), 0, 6,
        ),
        "svhn trunk": Case(
            (Layer(conv(16), False), Layer(conv(8), True), Layer(conv(4), True)),
            (3, 8, 17, 20), 16, 6, 2,
        ),
        "svhn generator": Case(
            (
                Layer(LINEAR, True, **relu, shape=(2, 2, 18)),  # type: ignore[arg-type]
                Layer(upconv(2), True, **relu),  # type: ignore[arg-type]
                Layer(upconv(4), False, **relu),  # type: ignore[arg-type]
                Layer(upconv(8), False, "tanh"),
            ),
            (11, 18, 12, 9, 3), 0, 5,
        ),
        "chairs trunk": Case(
            (
                Layer(conv(16), False),
                Layer(conv(8), True),
                Layer(conv(4, 4, 1, (1, 2)), True),
                Layer(LINEAR, False, slope=0.01),
            ),
            (1, 8, 16, 12, 21), 16, 6, 2,
        ),
        "chairs generator": Case(
            (
                Layer(LINEAR, True, **relu, shape=(4, 4, 12)),  # type: ignore[arg-type]
                Layer(upconv(4, 4, 1), True, **relu),  # type: ignore[arg-type]
                Layer(upconv(4), True, **relu),  # type: ignore[arg-type]
                Layer(upconv(8), False, "sigmoid"),
            ),
            (9, 12, 10, 9, 1), 0, 4,
        ),
        "heads": Case(
            (Layer(LINEAR, True), Layer(LINEAR, False, "none")), (40, 18, 14), 0, 8
        ),
    }  # fmt: skip
