"""Chains whose results are compared: those of the experiments' networks, and odd ones."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu_report.workload import normal
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.nn.run import describe
from fastinfogan_kernels.conv_block.autograd import fused_chain, reference_chain
from fastinfogan_kernels.conv_block.geometry import LINEAR, ConvGeometry, Window
from fastinfogan_kernels.conv_block.image_conv import Images
from fastinfogan_kernels.conv_block.ops import Layer, LayerTensors

Sizes = tuple[tuple[int, ...] | None, ...]
Make = Callable[[tuple[int, ...], int], Tensor]
_MANY = 4096
"""Values of an input from which a chain has many."""


@dataclass(frozen=True)
class ChainCase:
    """A chain and the sizes of what it reads.

    Attributes:
        name: of it.
        layers: its blocks.
        sizes: of each block's tensors, in the order of `LayerTensors`.
        shape: of the input, (N, C, H, W) or (N, features).
        groups: statistics groups.
        from_images: whether the input is uint8 images, gathered by an index.
    """

    name: str
    layers: tuple[Layer, ...]
    sizes: tuple[Sizes, ...]
    shape: tuple[int, ...]
    groups: int = 1
    from_images: bool = False

    def alone(self) -> Iterator["ChainCase"]:
        """Its layers, each a chain of its own: where a chain is wrong, which of them is it?"""
        shape = self.shape
        for i, (layer, sizes) in enumerate(zip(self.layers, self.sizes, strict=True)):
            yield replace(
                self, name=f"{self.name}, layer {i} alone", layers=(layer,), sizes=(sizes,),
                shape=shape, from_images=self.from_images and i == 0,
            )  # fmt: skip
            shape = self._behind(layer, sizes)

    def _behind(self, layer: Layer, sizes: Sizes) -> tuple[int, ...]:
        count, weight = self.shape[0], sizes[0]
        assert weight is not None
        if layer.shape is not None:
            height, width, channels = layer.shape
            return count, channels, height, width
        if layer.flat:
            return count, weight[0]
        channels = weight[1] if layer.gather.transposed else weight[0]
        return count, channels, *layer.gather.result

    def kinks(self, dtype: torch.dtype) -> set[str]:
        """Names of results that a value on the other side of a kink would move noticeably.

        In fp32 that happens to one value in some millions, and small chains have none.
        """
        kinked = any(each.activation == "rectifier" and each.slope != 1.0 for each in self.layers)
        if not kinked or (dtype == torch.float32 and math.prod(self.shape) < _MANY):
            return set()
        names = {
            f"{i}.{n}" for i in range(len(self.layers)) for n in ("weight", "bias", "gamma", "beta")
        }
        return {"input", *names}

    def __hash__(self) -> int:
        return hash(self.name)


def chains_of(e: Experiment) -> list[ChainCase]:
    """The four networks of an experiment, at its batch."""
    with torch.device("meta"):
        networks = InfoGAN(e)
    batch = e.batch_size
    image = (e.channels, e.height, e.width)
    found = [_described(f"{e.name} trunk", networks.trunk, (2 * batch, *image), 2)]
    features = found[0]._behind(found[0].layers[-1], found[0].sizes[-1])[1:]
    found.append(
        _described(f"{e.name} generator", networks.generator, (batch, e.latents.input_width), 1)
    )
    for name, network in (("Q head", networks.q_head), ("D head", networks.d_head)):
        found.append(_described(f"{e.name} {name}", network, (batch, *features), 1))
    return found


def _described(name: str, network: Any, shape: tuple[int, ...], groups: int) -> ChainCase:  # noqa: ANN401
    layers, tensors = describe(network.stages(), shape[1:], shape[0], groups)
    sizes = tuple(tuple(None if t is None else tuple(t.shape) for t in each) for each in tensors)
    return ChainCase(name, tuple(layers), sizes, shape, groups)


def odd_chains(*, dry: bool = False) -> list[ChainCase]:
    """What the experiments do not have: other windows, odd channels, batches, slopes, images."""
    windows = {
        "4x4 stride 1": _window(6, 4, 1, (1, 2)),
        "3x3 stride 1": _window(6, 3, 1, (1, 1)),
        "3x3 stride 2, odd side": _window(7, 3, 2, (1, 1)),
        "5x5 stride 1": _window(6, 5, 1, (2, 2)),
        "1x1": _window(6, 1, 1, (0, 0)),
        "up 4x4 stride 2": _up(5, 4, 2),
        "up 4x4 stride 1": _up(5, 4, 1),
        "up 2x2 stride 2": _up(4, 2, 2),
    }
    if dry:
        windows = {name: windows[name] for name in ("3x3 stride 2, odd side", "up 4x4 stride 2")}
    found = []
    for name, gather in windows.items():
        height, width = gather.source
        first = Layer(ConvGeometry(Window(height, width), False), True, slope=0.2)
        found.append(_made(name, (first, Layer(gather, True)), (5, 19, 37), (6, 5, height, width)))
    two = (Layer(_window(8), False), Layer(_window(4), True))
    for batch in (2,) if dry else (1, 2, 3, 33):
        name = f"a batch of {batch}"
        found.append(_made(name, two, (3, 7, 18), (batch, 3, 8, 8), groups=1))
    for slope in () if dry else (0.0, 0.01, 1.0):
        layers = tuple(Layer(each.gather, True, slope=slope) for each in two)
        found.append(_made(f"slope {slope}", layers, (3, 16, 16), (8, 3, 8, 8)))
    for norm in (True,) if dry else (True, False):
        layers = (Layer(_window(8), norm), Layer(_window(4), True))
        name = f"uint8 images by index, {'with' if norm else 'no'} batch norm first"
        found.append(_made(name, layers, (3, 7, 18), (6, 3, 8, 8), from_images=True))
    rows = (Layer(LINEAR, True), Layer(LINEAR, False, "none"))
    found.append(_made("rows", rows, (150, 18, 14), (8, 150), groups=1))
    return found


def _window(
    side: int, kernel: int = 4, stride: int = 2, pad: tuple[int, int] = (1, 1)
) -> ConvGeometry:
    return ConvGeometry(Window(side, side, kernel, stride, *pad), False)


def _up(side: int, kernel: int, stride: int) -> ConvGeometry:
    cut, big = kernel - stride, side * stride
    return ConvGeometry(Window(big, big, kernel, stride, cut // 2, cut - cut // 2), True)


def _made(
    name: str,
    layers: Sequence[Layer],
    channels: tuple[int, ...],
    shape: tuple[int, ...],
    *,
    groups: int = 2,
    from_images: bool = False,
) -> ChainCase:
    sizes: list[Sizes] = []
    for layer, into, out in zip(layers, channels[:-1], channels[1:], strict=True):
        k = layer.gather.window.kernel
        weight: tuple[int, ...] = (
            (into, out, k, k) if layer.gather.transposed else (out, into, k, k)
        )
        norm: tuple[tuple[int, ...] | None, ...] = ((out,),) * 4 if layer.norm else (None,) * 4
        sizes.append((weight[:2] if layer.flat else weight, (out,), *norm))
    return ChainCase(name, tuple(layers), tuple(sizes), shape, groups, from_images)


def tensors_of(case: ChainCase, make: Make) -> list[LayerTensors]:
    """A chain's tensors, at the scale that keeps maps near 1.

    Args:
        case: the chain.
        make: fp32 numbers of a normal distribution, of a shape and a seed.
    """
    found = []
    for i, (layer, sizes) in enumerate(zip(case.layers, case.sizes, strict=True)):
        drawn = [None if s is None else make(s, 10 * i + j) for j, s in enumerate(sizes)]
        weight, bias, gamma, beta, mean, var = drawn
        assert weight is not None
        w = layer.gather.window
        depth = weight[0].numel()
        if layer.gather.transposed:
            depth = max(weight.shape[0] * w.kernel**2 // w.stride**2, 1)
        weight = weight / depth**0.5
        if weight.dim() == 4:
            weight = weight.to(memory_format=torch.channels_last)
        found.append(
            LayerTensors(
                weight,
                None if bias is None else 0.1 * bias,
                None if gamma is None else 1 + 0.1 * gamma,
                None if beta is None else 0.1 * beta,
                None if mean is None else 0.1 * mean,
                None if var is None else var.abs() + 0.5,
            )
        )
    return found


def on(device: torch.device) -> Make:
    """Draws on the CPU, the same numbers everywhere, and moves them."""
    return lambda shape, seed: normal(shape, seed).to(device)


def empty(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers that are nowhere, for walking a chain."""
    return torch.empty(shape, device="meta")


def run(
    case: ChainCase,
    device: torch.device,
    rounded: torch.dtype,
    computed: torch.dtype,
    how: Callable[..., Tensor],
    *,
    rows_too: bool = True,
) -> dict[str, Tensor]:
    """A chain forward and backward.

    All sides start from the same numbers, rounded to the same format.

    Args:
        case: the chain.
        device: where.
        rounded: to which inputs and weights are rounded.
        computed: in which it computes.
        how: `fused_chain` or `reference_chain`.
        rows_too: whether biases and batch norm's parameters are in `computed`, too, as a
            convolution of torch's wants its bias; else in fp32.

    Returns:
        Output, gradients and running statistics, by name.
    """
    make = empty if device.type == "meta" else on(device)
    rows = computed if rows_too else torch.float32
    wide = torch.promote_types(computed, torch.float32)
    tensors = []
    for each in tensors_of(case, make):
        weight, bias, *norm = each
        weight = weight.to(rounded).to(computed).requires_grad_()
        if bias is not None:
            bias = bias.to(rounded).to(rows).requires_grad_()
        kept = [
            None if t is None else t.to(wide).clone().requires_grad_(i < 2)
            for i, t in enumerate(norm)
        ]
        tensors.append(LayerTensors(weight, bias, *kept))
    source: Tensor | Images
    if case.from_images:
        source = _images(case, device, computed)
    else:
        source = make(case.shape, 999).to(rounded).to(computed)
        if source.dim() == 4:
            source = source.contiguous(memory_format=torch.channels_last)
        source.requires_grad_()
    out = how(source, case.layers, tensors, case.groups)
    # In this thread: a GPU's way back has one of its own, which sees no launch table chosen here.
    with torch.autograd.set_multithreading_enabled(False):
        out.backward(make(tuple(out.shape), 998).to(rounded).to(out.dtype))
    found = {"out": out}
    if isinstance(source, Tensor) and source.grad is not None:
        found["input"] = source.grad
    for i, (layer, each) in enumerate(zip(case.layers, tensors, strict=True)):
        for name, t in zip(LayerTensors._fields, each, strict=True):
            if t is None:
                continue
            if name.startswith("running"):
                found[f"{i}.{name}"] = t
            elif not (layer.norm and name == "bias"):  # zero; in torch the noise of rounding
                assert t.grad is not None
                found[f"{i}.{name}"] = t.grad
    return {name: t.detach() for name, t in found.items()}


def _images(case: ChainCase, device: torch.device, dtype: torch.dtype) -> Images:
    count, channels, height, width = case.shape
    if device.type == "meta":
        pixels = torch.empty((count + 3, height, width, channels), dtype=torch.uint8, device=device)
        index = torch.empty(count, dtype=torch.int64, device=device)
    else:
        source = torch.Generator().manual_seed(4)
        shape = (count + 3, height, width, channels)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=source).to(device)
        index = torch.randint(0, count + 3, (count,), generator=source).to(device)
    return Images(pixels, index, 2 / 255, -1.0, dtype)


def ours(case: ChainCase, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """A chain by the kernels."""
    return run(case, device, dtype, dtype, fused_chain, rows_too=False)


def torchs(case: ChainCase, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """A chain by torch, in the same precision."""
    return run(case, device, dtype, dtype, reference_chain)


def truth(case: ChainCase, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """A chain in fp64, from numbers rounded as those of the precision."""
    return run(case, device, dtype, torch.float64, reference_chain)
