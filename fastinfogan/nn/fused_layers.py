"""Layers that `fuse` made one: the first of a chain computes all of it, the others hand on.

A fused layer is the very object that it was, under a class that inherits from its own. Its
parameters, buffers, attributes and hooks stay where they are and are read at every forward, so that
whatever is done to the model between two forwards counts: a momentum set, a layer frozen, moved,
initialised or copied.

What takes a layer out of its chain makes all layers of the chain compute by themselves, as they did
before: a hook, a parametrization (spectral norm, weight norm, pruning), another layer in its place
(convert_sync_batchnorm puts one there), an attribute that no block has. So a chain never computes
something else than its layers; taken apart, it is only slower.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastinfogan.errors import InputError
from fastinfogan.nn.run import Implementation, Stage, run_stages
from fastinfogan_kernels.conv_block.geometry import LINEAR, ConvGeometry, Window
from fastinfogan_kernels.conv_block.layers import Layer, LayerTensors
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup

MAPS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh)


class FusedLayer(nn.Module):
    """What the fused classes have in front of the class of their layer.

    Attributes:
        fused_chain: the chain that the layer belongs to; None once it is taken out.
        fused_place: its name in the module that holds it.
    """

    fused_chain: "FusedChain | None"
    fused_place: str

    def forward(self, x: Tensor) -> Tensor:
        """Compute the chain, or hand on what its first layer computed, or be the plain layer."""
        chain = self.fused_chain
        # A replica, as DataParallel makes them, is not what stands in its place.
        if chain is None or chain.places.get(self.fused_place) is not self:
            return self.plain_forward(x)
        if self is chain.units[0].map:
            chain.apart = chain.taken_apart()
            if not chain.apart:
                return chain.compute(x)
        return self.plain_forward(x) if chain.apart else x

    def plain_forward(self, x: Tensor) -> Tensor:
        """What the layer computes by itself."""
        out: Tensor = super().forward(x)
        return out

    def extra_repr(self) -> str:
        """As the layer has it; of a chain's first one the layers that are computed with it."""
        told, chain = super().extra_repr(), self.fused_chain
        if chain is not None and self is chain.units[0].map:
            told += f", computes {' + '.join(chain.names)}"
        return told


class FusedConv2d(FusedLayer, nn.Conv2d):
    """A convolution in a chain."""


class FusedConvTranspose2d(FusedLayer, nn.ConvTranspose2d):  # type: ignore[misc]
    """A transposed convolution in a chain."""


class FusedLinear(FusedLayer, nn.Linear):
    """A linear layer in a chain."""


class FusedBatchNorm1d(FusedLayer, nn.BatchNorm1d):
    """A batch norm of features in a chain."""


class FusedBatchNorm2d(FusedLayer, nn.BatchNorm2d):
    """A batch norm of maps in a chain."""


class FusedReLU(FusedLayer, nn.ReLU):
    """A ReLU in a chain."""


class FusedLeakyReLU(FusedLayer, nn.LeakyReLU):
    """A leaky ReLU in a chain."""


class FusedSigmoid(FusedLayer, nn.Sigmoid):
    """A sigmoid at a chain's end."""


class FusedTanh(FusedLayer, nn.Tanh):
    """A tanh at a chain's end."""


_FUSED: dict[type[nn.Module], type[FusedLayer]] = {
    nn.Conv2d: FusedConv2d,
    nn.ConvTranspose2d: FusedConvTranspose2d,
    nn.Linear: FusedLinear,
    nn.BatchNorm1d: FusedBatchNorm1d,
    nn.BatchNorm2d: FusedBatchNorm2d,
    nn.ReLU: FusedReLU,
    nn.LeakyReLU: FusedLeakyReLU,
    nn.Sigmoid: FusedSigmoid,
    nn.Tanh: FusedTanh,
}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}


@dataclass
class Unit:
    """One block of a chain, as layers of a model.

    Attributes:
        map: the convolution, transposed convolution or linear layer.
        norm: the batch norm behind it, or None.
        activation: the activation behind that, or None.
        names: their places in the module that holds them, in order.
    """

    map: nn.Module
    norm: nn.Module | None = None
    activation: nn.Module | None = None
    names: list[str] = field(default_factory=list)

    def layers(self) -> Iterator[nn.Module]:
        """The layers there are, in order."""
        yield from (m for m in (self.map, self.norm, self.activation) if m is not None)


@dataclass(eq=False)
class FusedChain:
    """Units in a row that are computed as one.

    Attributes:
        units: the chain's blocks.
        places: the children of the module that holds them, by name, as that module keeps them.
        impl: who computes, as of a block.
        process_group: with whose ranks statistics are shared, see `synchronise`.
        apart: whether in this pass every layer computes by itself.
    """

    units: list[Unit]
    places: dict[str, nn.Module | None]
    impl: Implementation
    process_group: ProcessGroup = None
    apart: bool = False

    @property
    def names(self) -> list[str]:
        """The layers' places, in order."""
        return [name for unit in self.units for name in unit.names]

    @property
    def layers(self) -> list[nn.Module]:
        """The layers, in order."""
        return [layer for unit in self.units for layer in unit.layers()]

    def hold(self) -> None:
        """Make the layers fused ones of this chain."""
        for name, layer in zip(self.names, self.layers, strict=True):
            layer.fused_chain, layer.fused_place = self, name  # type: ignore[assignment]
            layer.__class__ = _FUSED[type(layer)]

    def release(self) -> None:
        """Make the layers what they were."""
        for layer in self.layers:
            layer.fused_chain = None  # type: ignore[assignment]
            # A parametrized one has a class of torch's own in front, which takes care of itself.
            if type(layer) in _PLAIN:
                del layer.fused_chain, layer.fused_place
                layer.__class__ = _PLAIN[type(layer)]  # type: ignore[index]

    def taken_apart(self) -> bool:
        """Whether anything was done to a layer that makes it another than a chain's.

        Raises:
            InputError: something was, and "triton", "native" or shared statistics were asked for.
        """
        for name, layer in zip(self.names, self.layers, strict=True):
            if self.places.get(name) is not layer:
                why = "another layer stands in its place"
            elif type(layer) not in _PLAIN:
                why = "its class was changed, by a parametrization it seems"
            else:
                why = unlike_a_block(layer)
            if why and (self.impl in ("triton", "native") or self.process_group is not None):
                raise InputError(
                    f"the chain {' + '.join(self.names)} cannot be computed as one: {name}: {why}; "
                    "unfuse the model and fuse it again"
                )
            if why:
                return True
        return False

    def compute(self, x: Tensor) -> Tensor:
        """All layers as one; empty input, or of another rank, goes layer by layer as before."""
        rank = 2 if isinstance(self.units[0].map, nn.Linear) else 4
        if x.dim() != rank or x.shape[0] == 0:
            if self.process_group is not None:
                raise InputError(
                    f"shared statistics need a batch of {rank} dimensions, not {tuple(x.shape)}"
                )
            for layer in self.layers:
                assert isinstance(layer, FusedLayer)
                x = layer.plain_forward(x)
            return x
        stages = [partial(stage_of, unit) for unit in self.units]
        out = run_stages(stages, x, 1, self.impl, self.process_group)
        if rank == 4 and not any(_is_channels_last(t) for t in (x, *self._weights())):
            return out.contiguous()  # as torch's layers, for whoever takes a view of it
        return out

    def _weights(self) -> Iterator[Tensor]:
        for unit in self.units:
            assert isinstance(unit.map, MAPS)
            yield unit.map.weight


def _is_channels_last(x: Tensor) -> bool:
    """Whether torch's convolutions take it to be; a map of one pixel they do not."""
    return x.shape[2] * x.shape[3] > 1 and x.stride(1) == 1


def stage_of(unit: Unit, shape: tuple[int, ...]) -> Stage:
    """What a unit computes for input of a shape, (C, H, W) or (features,)."""
    layer, norm, activation = unit.map, unit.norm, unit.activation
    assert isinstance(layer, MAPS)
    assert norm is None or isinstance(norm, NORMS)
    geometry, out = _geometry_of(layer, shape)
    kind, slope = "leaky_relu", 1.0
    if isinstance(activation, nn.ReLU):
        slope = 0.0
    elif isinstance(activation, nn.LeakyReLU):
        slope = activation.negative_slope
    elif activation is not None:
        kind = "sigmoid" if isinstance(activation, nn.Sigmoid) else "tanh"
    described = Layer(
        geometry,
        norm=norm is not None,
        activation=kind,  # type: ignore[arg-type]
        slope=slope,
        eps=norm.eps if norm is not None else 0.0,
        momentum=norm.momentum or 0.0 if norm is not None else 0.0,
    )
    return Stage(described, LayerTensors(layer.weight, layer.bias), norm, out)


def _geometry_of(layer: Any, shape: tuple[int, ...]) -> tuple[ConvGeometry, tuple[int, ...]]:  # noqa: ANN401
    if isinstance(layer, nn.Linear):
        if shape != (layer.in_features,):
            raise InputError(f"{layer} takes {layer.in_features} features, not {shape}")
        return LINEAR, (layer.out_features,)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    channels, height, width = shape
    if channels != layer.in_channels:
        raise InputError(f"{layer} takes {layer.in_channels} channels, not {channels}")
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    before, after = _padding_of(layer)
    if isinstance(layer, nn.Conv2d):
        window = Window(height, width, kernel, stride, before, after)
        return ConvGeometry(window, False), (layer.out_channels, window.rows, window.columns)
    window = Window(height * stride, width * stride, kernel, stride, before, after)
    return ConvGeometry(window, True), (layer.out_channels, window.height, window.width)


def _padding_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int]:
    """A square layer's padding in front and behind."""
    if isinstance(layer.padding, str):
        total = layer.kernel_size[0] - 1 if layer.padding == "same" else 0
        return total // 2, total - total // 2
    before = layer.padding[0]
    if isinstance(layer, nn.ConvTranspose2d):
        return before, before - layer.output_padding[0]
    return before, before


def unlike_a_block(layer: nn.Module) -> str:
    """Why no block computes what this layer does, whatever stands beside it, or nothing."""
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
        layer._backward_pre_hooks,
    )  # fmt: skip
    if any(hooks):
        return "it has hooks"
    if "forward" in vars(layer):
        return "its forward was replaced"
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return _unlike_a_window(layer)
    if isinstance(layer, NORMS) and layer.momentum is None:
        return "its running statistics are cumulative averages (momentum None)"
    if isinstance(layer, nn.LeakyReLU) and not 0 <= layer.negative_slope < math.inf:
        return f"its slope {layer.negative_slope} is negative or not finite"
    return ""


def _unlike_a_window(layer: nn.Conv2d | nn.ConvTranspose2d) -> str:
    square = (layer.kernel_size, layer.stride, layer.dilation, layer.output_padding)
    if any(pair[0] != pair[1] for pair in square) or (
        not isinstance(layer.padding, str) and layer.padding[0] != layer.padding[1]
    ):
        return "its kernel, stride or padding is not square"
    if layer.groups != 1 or layer.dilation[0] != 1:
        return "it has groups or dilation"
    if layer.padding_mode != "zeros":
        return f"its padding is {layer.padding_mode}, not zeros"
    if isinstance(layer, nn.ConvTranspose2d):
        before, after = _padding_of(layer)
        if layer.kernel_size[0] - before - after != layer.stride[0] or after < 0:
            return "its output is not its input's size times the stride"
    return ""
