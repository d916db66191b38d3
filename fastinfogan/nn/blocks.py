"""Fused blocks: convolution, transposed convolution or linear layer, batch norm, activation.

A block is used like any module, by itself or in a `Chain`. `groups` splits the batch into equal
parts with separate batch-norm statistics, so that real and generated images pass through D in one
call and are normalised as two batches.

`impl` selects the backend: "triton" the fused kernels, "native" ATen's convolutions with epilogues
in C++, "reference" plain torch; "auto" takes Triton for CUDA tensors, C++ for CPU tensors if it was
compiled, torch otherwise. Results, weights and their names are the same.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastinfogan.errors import InputError
from fastinfogan.nn.forward import (
    ActivationName,
    BlockCall,
    CallFor,
    Implementation,
    block_calls,
    run_blocks,
)
from fastinfogan_kernels.conv_block.layers import (
    LINEAR,
    ConvGeometry,
    Images,
    Layer,
    LayerTensors,
    Window,
)

if TYPE_CHECKING:
    from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup

_INIT_DEVIATION = 0.02


class Block(nn.Module):
    """Base class of the three kinds of blocks.

    Attributes:
        layer: torch's convolution, transposed convolution or linear layer.
        norm: torch's batch norm, or None.
        activation: its name.
        slope: of a leaky ReLU.
        impl: "auto", "triton", "native" or "reference".
        process_group: of the ranks that share batch-norm statistics, see `synchronise`.
    """

    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None

    def __init__(self, activation: ActivationName, slope: float, impl: Implementation) -> None:
        super().__init__()
        if not math.isfinite(slope) or slope < 0.0:
            raise InputError(f"slope must be finite and not negative, not {slope}")
        if activation not in get_args(ActivationName):
            known = ", ".join(get_args(ActivationName))
            raise InputError(f"activation must be one of {known}, not {activation!r}")
        self.activation = activation
        self.slope = slope
        self.impl = impl
        self.process_group: ProcessGroup = None

    def forward(self, x: Tensor | Images, groups: int = 1) -> Tensor:
        """Apply the block.

        Args:
            x: (N, C, H, W), fastest in channels_last memory; (N, features) for a LinearBlock, which
                also takes feature maps; or `Images`.
            groups: equal parts of the batch with separate batch-norm statistics; the running ones
                are updated in order.

        Returns:
            (N, channels, H', W'), in channels_last memory by the kernels, or (N, features).

        Raises:
            InputError: rank, channels, dtype, device or batch do not fit.
        """
        return run_blocks([self.call_for], x, groups, self.impl, self.process_group)

    def call_for(self, shape: tuple[int, ...]) -> BlockCall:
        """Return what the block computes for inputs of a shape, (C, H, W) or (features,)."""
        raise NotImplementedError

    def _call(
        self,
        geometry: ConvGeometry,
        out: tuple[int, ...],
        shape: tuple[int, int, int] | None = None,
    ) -> BlockCall:
        norm = self.norm
        rectifies = self.activation in ("relu", "leaky_relu")
        layer = Layer(
            geometry,
            norm=norm is not None,
            activation="leaky_relu" if rectifies else self.activation,  # type: ignore[arg-type]
            slope=0.0 if self.activation == "relu" else self.slope,
            eps=norm.eps if norm is not None else 0.0,
            momentum=norm.momentum or 0.0 if norm is not None else 0.0,
            shape=shape,
        )
        return BlockCall(layer, LayerTensors(self.layer.weight, self.layer.bias), norm, out)

    def extra_repr(self) -> str:
        """Return activation, slope and backend."""
        slope = f", slope={self.slope}" if self.activation == "leaky_relu" else ""
        return f"activation={self.activation}{slope}, impl={self.impl}"

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the released code's initial weights: standard deviation 0.02, gamma around 1.

        A bias before batch norm is frozen at 0: its gradient is exactly zero.
        """
        layer = self.layer
        if isinstance(layer, nn.Conv2d):
            bound = 2 * _INIT_DEVIATION
            nn.init.trunc_normal_(layer.weight, 0.0, _INIT_DEVIATION, -bound, bound, generator)
        else:
            nn.init.normal_(layer.weight, 0.0, _INIT_DEVIATION, generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
            layer.bias.requires_grad_(self.norm is None)
        if self.norm is not None:
            self.norm.reset_running_stats()
            nn.init.normal_(self.norm.weight, 1.0, _INIT_DEVIATION, generator)
            nn.init.zeros_(self.norm.bias)


class ConvBlock(Block):
    """Convolution, batch norm, activation; (N, C, H, W) to (N, channels, H', W').

    Args:
        in_channels: of the input.
        channels: of the output.
        kernel: height and width of the filter, in pixels.
        stride: in both directions.
        padding: zeros at each border, or (before, after); None for "SAME": the input's size divided
            by the stride, with one zero more after than before where the total is odd.
        batch_norm: whether batch norm follows the convolution.
        activation: "none", "relu", "leaky_relu", "sigmoid" or "tanh".
        slope: of a leaky ReLU.
        bias: whether the convolution has one.
        impl: "auto", "triton", "native" or "reference".
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        stride: int = 1,
        *,
        padding: int | tuple[int, int] | None = None,
        batch_norm: bool = True,
        activation: ActivationName = "leaky_relu",
        slope: float = 0.1,
        bias: bool = True,
        impl: Implementation = "auto",
    ) -> None:
        super().__init__(activation, slope, impl)
        total = max(kernel - stride, 0)
        if padding is None:
            padding = (total // 2, total - total // 2)
        self.padding = (padding, padding) if isinstance(padding, int) else padding
        # torch's module has symmetric padding only; this block applies its own.
        symmetric = self.padding[0] if self.padding[0] == self.padding[1] else 0
        self.layer = nn.Conv2d(in_channels, channels, kernel, stride, symmetric, bias=bias)
        self.norm = nn.BatchNorm2d(channels) if batch_norm else None
        self.reset_parameters()

    def call_for(self, shape: tuple[int, ...]) -> BlockCall:
        """Choose the call; see `Block`."""
        _, height, width = _check_image(shape, self.layer.weight.shape[1], "ConvBlock")
        layer = self.layer
        assert isinstance(layer, nn.Conv2d)
        window = Window(height, width, layer.kernel_size[0], layer.stride[0], *self.padding)
        return self._call(
            ConvGeometry(window, False), (layer.out_channels, window.rows, window.columns)
        )


class UpconvBlock(Block):
    """Transposed convolution by which height and width grow by the stride, batch norm, activation.

    Args:
        in_channels: of the input.
        channels: of the output.
        kernel: height and width of the filter, in pixels; at least the stride.
        stride: factor of height and width. Where kernel - stride is odd, one row and column more
            are cropped after than before.
        batch_norm: whether batch norm follows the transposed convolution.
        activation: as of a ConvBlock.
        slope: of a leaky ReLU.
        bias: whether the transposed convolution has one.
        impl: "auto", "triton", "native" or "reference".
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        stride: int,
        *,
        batch_norm: bool = True,
        activation: ActivationName = "relu",
        slope: float = 0.1,
        bias: bool = True,
        impl: Implementation = "auto",
    ) -> None:
        super().__init__(activation, slope, impl)
        if kernel < stride:
            raise InputError(f"kernel must be at least stride: {kernel} is below {stride}")
        total = kernel - stride
        self.padding = (total // 2, total - total // 2)
        self.layer = nn.ConvTranspose2d(
            in_channels, channels, kernel, stride, total // 2, bias=bias
        )
        self.norm = nn.BatchNorm2d(channels) if batch_norm else None
        self.reset_parameters()

    def call_for(self, shape: tuple[int, ...]) -> BlockCall:
        """Choose the call; see `Block`."""
        _, height, width = _check_image(shape, self.layer.weight.shape[0], "UpconvBlock")
        layer = self.layer
        assert isinstance(layer, nn.ConvTranspose2d)
        stride = layer.stride[0]
        window = Window(
            height * stride, width * stride, layer.kernel_size[0], stride, *self.padding
        )
        return self._call(
            ConvGeometry(window, True), (layer.out_channels, window.height, window.width)
        )


class LinearBlock(Block):
    """Fully connected layer, batch norm per feature, activation.

    Args:
        in_features: of the input; a feature map is flattened as (height, width, channels).
        features: of the output.
        batch_norm: whether batch norm follows the layer.
        activation: as of a ConvBlock.
        slope: of a leaky ReLU.
        bias: whether the layer has one.
        shape: (height, width, channels) for an output of (N, channels, height, width) in
            channels_last memory; height * width * channels must be `features`.
        impl: "auto", "triton", "native" or "reference".
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        batch_norm: bool = True,
        activation: ActivationName = "leaky_relu",
        slope: float = 0.1,
        bias: bool = True,
        shape: tuple[int, int, int] | None = None,
        impl: Implementation = "auto",
    ) -> None:
        super().__init__(activation, slope, impl)
        if shape is not None and math.prod(shape) != features:
            raise InputError(f"shape {shape} has {math.prod(shape)} features, not {features}")
        self.shape = shape
        self.layer = nn.Linear(in_features, features, bias=bias)
        self.norm = nn.BatchNorm1d(features) if batch_norm else None
        self.reset_parameters()

    def call_for(self, shape: tuple[int, ...]) -> BlockCall:
        """Choose the call; see `Block`."""
        if len(shape) not in (1, 3):
            raise InputError(
                f"a LinearBlock takes 2 or 4 dimensions, not {len(shape) + 1} dimensions"
            )
        found, needed = math.prod(shape), self.layer.weight.shape[1]
        if found != needed:
            raise InputError(f"this LinearBlock takes {needed} features, not {found} ({shape})")
        features = self.layer.weight.shape[0]
        out = (features,) if self.shape is None else (self.shape[2], *self.shape[:2])
        return self._call(LINEAR, out, self.shape)


def _check_image(shape: tuple[int, ...], channels: int, kind: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InputError(f"a {kind} takes (N, C, H, W), not {len(shape) + 1} dimensions")
    if shape[0] != channels:
        raise InputError(f"this {kind} takes {channels} channels, not {shape[0]}")
    return shape[0], shape[1], shape[2]


class Chain(nn.Sequential):
    """Blocks in a row, computed and differentiated as one: no activation between them is saved.

    Args:
        blocks: ConvBlock, UpconvBlock and LinearBlock, in order.
        impl: "auto", "triton", "native" or "reference", for all of them.
    """

    def __init__(self, *blocks: Block, impl: Implementation = "auto") -> None:
        super().__init__(*blocks)
        self.impl = impl
        self.process_group: ProcessGroup = None

    def forward(self, x: Tensor | Images, groups: int = 1) -> Tensor:
        """Apply the blocks; arguments, result and errors as of a block's own forward."""
        return run_blocks(self._blocks(), x, groups, self.impl, self.process_group)

    def calls(self, shape: tuple[int, ...], batch: int, groups: int = 1) -> list[BlockCall]:
        """Return what each block computes for a batch of inputs of a shape, see `block_calls`."""
        return block_calls(self._blocks(), shape, batch, groups)

    def _blocks(self) -> list[CallFor]:
        blocks: list[CallFor] = []
        for block in self:
            if not isinstance(block, Block):
                raise InputError(f"a Chain is made of blocks, not of {type(block).__name__}")
            blocks.append(block.call_for)
        if not blocks:
            raise InputError("a Chain without blocks computes nothing")
        return blocks


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Iterator[None]:
    """Normalise with batch statistics in these modules, without updating the running ones."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, track in zip(norms, before, strict=True):
            norm.track_running_stats = track
