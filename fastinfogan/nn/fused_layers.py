"""Fused layers: the first layer of a chain computes all of it, the others return their input.

`fuse` changes a layer's class to one that inherits from it; the object stays. Its parameters,
buffers, attributes and hooks are read at every forward, so that changes to the model between two
forward passes take effect: a new momentum, a frozen, moved, initialised or copied layer.

A change that no block can compute makes all layers of the chain run one by one, as before `fuse`: a
hook, a parametrization (spectral norm, weight norm, pruning), a replaced layer (by
convert_sync_batchnorm, for example). So the result is always that of the layers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastinfogan.errors import InputError
from fastinfogan.nn.forward import BlockCall, Implementation, run_blocks
from fastinfogan_kernels.conv_block.layers import LINEAR, ConvGeometry, Layer, LayerTensors, Window
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ACTIVATION_MODULES = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh)


class FusedLayer(nn.Module):
    """Mixin of the fused classes.

    Attributes:
        fused_chain: the chain that the layer belongs to; None once it is unfused.
        fused_name: its name in its parent module.
    """

    fused_chain: "FusedChain | None"
    fused_name: str

    def forward(self, x: Tensor) -> Tensor:
        """Compute the whole chain in its first layer, and return the input in the others."""
        chain = self.fused_chain
        # DataParallel's replicas are not the children of their parent module.
        if chain is None or chain.siblings.get(self.fused_name) is not self:
            return self.plain_forward(x)
        if self is chain.groups[0].layer:
            chain.broken = chain.is_broken()
            if not chain.broken:
                return chain.compute(x)
        return self.plain_forward(x) if chain.broken else x

    def plain_forward(self, x: Tensor) -> Tensor:
        """Run the layer alone."""
        out: Tensor = super().forward(x)
        return out

    def extra_repr(self) -> str:
        """Return the layer's own, and for a chain's first layer the names of the others."""
        text, chain = super().extra_repr(), self.fused_chain
        if chain is not None and self is chain.groups[0].layer:
            text += f", computes {' + '.join(chain.names)}"
        return text


class FusedConv2d(FusedLayer, nn.Conv2d):
    """A convolution of a fused chain."""


class FusedConvTranspose2d(FusedLayer, nn.ConvTranspose2d):  # type: ignore[misc]
    """A transposed convolution of a fused chain."""


class FusedLinear(FusedLayer, nn.Linear):
    """A linear layer of a fused chain."""


class FusedBatchNorm1d(FusedLayer, nn.BatchNorm1d):
    """A batch norm of features of a fused chain."""


class FusedBatchNorm2d(FusedLayer, nn.BatchNorm2d):
    """A batch norm of feature maps of a fused chain."""


class FusedReLU(FusedLayer, nn.ReLU):
    """A ReLU of a fused chain."""


class FusedLeakyReLU(FusedLayer, nn.LeakyReLU):
    """A leaky ReLU of a fused chain."""


class FusedSigmoid(FusedLayer, nn.Sigmoid):
    """A sigmoid at the end of a fused chain."""


class FusedTanh(FusedLayer, nn.Tanh):
    """A tanh at the end of a fused chain."""


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    fused: fused.__mro__[2]
    for fused in (
        FusedConv2d, FusedConvTranspose2d, FusedLinear, FusedBatchNorm1d, FusedBatchNorm2d,
        FusedReLU, FusedLeakyReLU, FusedSigmoid, FusedTanh,
    )
}  # fmt: skip
_FUSED = {plain: fused for fused, plain in _PLAIN.items()}


@dataclass
class LayerGroup:
    """The layers of a model that form one block.

    Attributes:
        layer: the convolution, transposed convolution or linear layer.
        norm: the batch norm after it, or None.
        activation: the activation after that, or None.
        names: of these layers in their parent module, in order.
    """

    layer: nn.Module
    norm: nn.Module | None = None
    activation: nn.Module | None = None
    names: list[str] = field(default_factory=list)

    def layers(self) -> Iterator[nn.Module]:
        """Yield the layers that are not None, in order."""
        yield from (m for m in (self.layer, self.norm, self.activation) if m is not None)


@dataclass(eq=False)
class FusedChain:
    """Layers of one parent module that are computed as one.

    Attributes:
        groups: the layers, one group for each block.
        siblings: `_modules` of the parent module.
        impl: the backend, see `Block`.
        process_group: of the ranks that share batch-norm statistics, see `synchronise`.
        broken: whether the current forward pass runs layer by layer.
    """

    groups: list[LayerGroup]
    siblings: dict[str, nn.Module | None]
    impl: Implementation
    process_group: ProcessGroup = None
    broken: bool = False

    @property
    def names(self) -> list[str]:
        """The layers' names, in order."""
        return [name for group in self.groups for name in group.names]

    @property
    def layers(self) -> list[nn.Module]:
        """The layers, in order."""
        return [layer for group in self.groups for layer in group.layers()]

    def attach(self) -> None:
        """Fuse the layers."""
        for name, layer in zip(self.names, self.layers, strict=True):
            layer.fused_chain, layer.fused_name = self, name  # type: ignore[assignment]
            layer.__class__ = _FUSED[type(layer)]

    def detach(self) -> None:
        """Unfuse the layers."""
        for layer in self.layers:
            layer.fused_chain = None  # type: ignore[assignment]
            # A parametrized layer has a class generated by torch, which is left as it is.
            if type(layer) in _PLAIN:
                del layer.fused_chain, layer.fused_name
                layer.__class__ = _PLAIN[type(layer)]

    def is_broken(self) -> bool:
        """Return whether a layer was changed so that the chain cannot be computed as one.

        Raises:
            InputError: it was, and impl is "triton" or "native" or statistics are shared.
        """
        for name, layer in zip(self.names, self.layers, strict=True):
            if self.siblings.get(name) is not layer:
                why = "it was replaced by another layer"
            elif type(layer) not in _PLAIN:
                why = "its class was changed, probably by a parametrization"
            else:
                why = unsupported(layer)
            if why and (self.impl in ("triton", "native") or self.process_group is not None):
                raise InputError(
                    f"the chain {' + '.join(self.names)} cannot be computed as one: {name}: {why}; "
                    "unfuse the model and fuse it again"
                )
            if why:
                return True
        return False

    def compute(self, x: Tensor) -> Tensor:
        """Compute all layers as one; layer by layer where the input is empty or of another rank."""
        rank = 2 if isinstance(self.groups[0].layer, nn.Linear) else 4
        if x.dim() != rank or x.shape[0] == 0:
            if self.process_group is not None:
                raise InputError(
                    f"shared statistics need a batch of {rank} dimensions, not {tuple(x.shape)}"
                )
            for layer in self.layers:
                assert isinstance(layer, FusedLayer)
                x = layer.plain_forward(x)
            return x
        blocks = [partial(call_of, group) for group in self.groups]
        out = run_blocks(blocks, x, 1, self.impl, self.process_group)
        if rank == 4 and not any(_is_channels_last(t) for t in (x, *self._weights())):
            return out.contiguous()  # as torch's layers would; code after it may call .view()
        return out

    def _weights(self) -> Iterator[Tensor]:
        for group in self.groups:
            assert isinstance(group.layer, LAYERS)
            yield group.layer.weight


def _is_channels_last(x: Tensor) -> bool:
    """Return whether torch's convolutions treat x so; a feature map of one pixel they do not."""
    return x.shape[2] * x.shape[3] > 1 and x.stride(1) == 1


def call_of(group: LayerGroup, shape: tuple[int, ...]) -> BlockCall:
    """Return what a group computes for inputs of a shape, (C, H, W) or (features,)."""
    layer, norm, activation = group.layer, group.norm, group.activation
    assert isinstance(layer, LAYERS)
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
    return BlockCall(described, LayerTensors(layer.weight, layer.bias), norm, out)


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
    """Return the padding before and after of a layer with equal height and width."""
    if isinstance(layer.padding, str):
        total = layer.kernel_size[0] - 1 if layer.padding == "same" else 0
        return total // 2, total - total // 2
    before = layer.padding[0]
    if isinstance(layer, nn.ConvTranspose2d):
        return before, before - layer.output_padding[0]
    return before, before


def unsupported(layer: nn.Module) -> str:
    """Return why no block can compute a layer, whatever is around it, or an empty string."""
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
        layer._backward_pre_hooks,
    )  # fmt: skip
    if any(hooks):
        return "it has hooks"
    if "forward" in vars(layer):
        return "its forward was replaced"
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return _unsupported_window(layer)
    if isinstance(layer, NORMS) and layer.momentum is None:
        return "its running statistics are cumulative averages (momentum None)"
    if isinstance(layer, nn.LeakyReLU) and not 0 <= layer.negative_slope < math.inf:
        return f"its slope {layer.negative_slope} is negative or not finite"
    return ""


def _unsupported_window(layer: nn.Conv2d | nn.ConvTranspose2d) -> str:
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
