"""What `fuse` puts in the place of layers: they share their parameters, and one computes all."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastinfogan.errors import InputError
from fastinfogan.kernels.chain import Layer, LayerTensors
from fastinfogan.kernels.geometry import LINEAR, Gather, Window
from fastinfogan.kernels.ranks import Group
from fastinfogan.nn.run import Implementation, Stage, run_stages

MAPS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh)


class StandIn(nn.Module):
    """Takes a layer's place: the same parameters and buffers, by the same names.

    Attributes:
        original: the layer; kept out of the module tree.
    """

    original: nn.Module

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)
        # The very dictionaries, so that whatever is done to the one is done to the other.
        self._parameters = original._parameters
        self._buffers = original._buffers
        self._non_persistent_buffers_set = original._non_persistent_buffers_set
        self._version = original._version
        self.training = original.training

    def forward(self, x: Tensor) -> Tensor:
        """Hand on: the layer was computed by the first one of its chain."""
        return x

    def train(self, mode: bool = True) -> "StandIn":
        """Set the mode of the layer with that of its stand-in."""
        super().train(mode)
        self.original.train(mode)
        return self

    def _save_to_state_dict(self, *arguments: Any) -> None:  # noqa: ANN401
        self.original._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:  # noqa: ANN401
        self.original._load_from_state_dict(*arguments)

    def extra_repr(self) -> str:
        """What it stands for."""
        return f"{type(self.original).__name__}, fused"


@dataclass
class Unit:
    """One block of a chain, as layers of a model.

    Attributes:
        map: the convolution, transposed convolution or linear layer.
        norm: the batch norm behind it, or None.
        activation: the activation behind that, or None.
        names: their places in the model, in order.
    """

    map: nn.Module
    norm: nn.Module | None = None
    activation: nn.Module | None = None
    names: list[str] = field(default_factory=list)

    def layers(self) -> Iterator[nn.Module]:
        """The layers there are, in order."""
        yield from (m for m in (self.map, self.norm, self.activation) if m is not None)


class Fused(StandIn):
    """The first stand-in of a chain, which computes all of it.

    Args:
        units: the chain's blocks.
        impl: "auto", "triton" or "reference".
    """

    def __init__(self, units: list[Unit], impl: Implementation) -> None:
        super().__init__(units[0].map)
        object.__setattr__(self, "units", units)
        self.impl = impl
        self.process_group = None

    units: list[Unit]
    process_group: Group

    def forward(self, x: Tensor) -> Tensor:
        """Compute the chain; empty input, or of another rank, goes layer by layer as before."""
        if x.dim() != (2 if isinstance(self.units[0].map, nn.Linear) else 4) or x.shape[0] == 0:
            for unit in self.units:
                for layer in unit.layers():
                    x = layer(x)
            return x
        stages = [partial(stage_of, unit) for unit in self.units]
        return run_stages(stages, x, 1, self.impl, self.process_group)

    def extra_repr(self) -> str:
        """The layers that are computed here."""
        return ", ".join(name for unit in self.units for name in unit.names)


def stage_of(unit: Unit, shape: tuple[int, ...]) -> Stage:
    """What a unit computes for input of a shape, (C, H, W) or (features,)."""
    layer, norm, activation = unit.map, unit.norm, unit.activation
    gather, out = _gather_of(layer, shape)
    kinds = {nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
    slope = 1.0
    if isinstance(activation, nn.ReLU):
        slope = 0.0
    elif isinstance(activation, nn.LeakyReLU):
        slope = activation.negative_slope
    described = Layer(
        gather,
        norm=norm is not None,
        activation=kinds.get(type(activation), "rectifier"),  # type: ignore[arg-type]
        slope=slope,
        eps=norm.eps if isinstance(norm, NORMS) else 0.0,
        momentum=norm.momentum or 0.0 if isinstance(norm, NORMS) else 0.0,
    )
    assert isinstance(layer, MAPS)
    assert norm is None or isinstance(norm, NORMS)
    return Stage(described, LayerTensors(layer.weight, layer.bias), norm, out)


def _gather_of(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Gather, tuple[int, ...]]:
    if isinstance(layer, nn.Linear):
        if shape != (layer.in_features,):
            raise InputError(f"{layer} takes {layer.in_features} features, not {shape}")
        return LINEAR, (layer.out_features,)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    channels, height, width = shape
    if channels != layer.in_channels:
        raise InputError(f"{layer} takes {layer.in_channels} channels, not {channels}")
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    before, after = padding_of(layer)
    if isinstance(layer, nn.Conv2d):
        window = Window(height, width, kernel, stride, before, after)
        return Gather(window, False), (layer.out_channels, window.rows, window.columns)
    window = Window(height * stride, width * stride, kernel, stride, before, after)
    return Gather(window, True), (layer.out_channels, window.height, window.width)


def padding_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int]:
    """A square layer's padding in front and behind."""
    if isinstance(layer.padding, str):
        total = layer.kernel_size[0] - 1 if layer.padding == "same" else 0
        return total // 2, total - total // 2
    before = layer.padding[0]
    if isinstance(layer, nn.ConvTranspose2d):
        return before, before - layer.output_padding[0]
    return before, before
