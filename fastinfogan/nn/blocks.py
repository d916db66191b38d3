"""The blocks that networks are made of: act(norm(map(x))), trainable as one.

Each works alone, in a `Chain`, and in anybody's model. `groups` cuts the batch into that many equal
parts whose batch-norm statistics are separate, so that real and generated images pass through D in
one call and yet are two batches.

`impl` says who computes: "triton" the fused kernels, "native" ATen's products with our epilogues in
C++, "reference" plain torch; "auto" the kernels for CUDA tensors, C++ for CPU tensors if it was
compiled, torch for others. What is computed is the same; weights and their names too.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from fastinfogan.errors import InputError
from fastinfogan.nn.run import ActivationName, Implementation, Stage, run_stages
from fastinfogan_kernels.conv_block.geometry import LINEAR, ConvGeometry, Window
from fastinfogan_kernels.conv_block.layers import Images, Layer, LayerTensors

if TYPE_CHECKING:
    from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup

_INIT_DEVIATION = 0.02


class Block(nn.Module):
    """What the three kinds have in common.

    Attributes:
        layer: the map, as torch has it.
        norm: the batch norm, or None.
        activation: its name.
        slope: of a leaky ReLU.
        impl: "auto", "triton", "native" or "reference".
        process_group: with whose ranks statistics are shared, see `synchronise`.
    """

    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None

    def __init__(self, activation: ActivationName, slope: float, impl: Implementation) -> None:
        super().__init__()
        if not math.isfinite(slope) or slope < 0.0:
            raise InputError(f"the slope of a leaky ReLU is finite and not negative, not {slope}")
        if activation not in get_args(ActivationName):
            known = ", ".join(get_args(ActivationName))
            raise InputError(f"an activation is one of {known}, not {activation!r}")
        self.activation = activation
        self.slope = slope
        self.impl = impl
        self.process_group: ProcessGroup = None

    def forward(self, x: Tensor | Images, groups: int = 1) -> Tensor:
        """Apply the block.

        Args:
            x: (N, C, H, W), best in channels_last memory, or (N, features) for a LinearBlock, which
                also takes maps; or `Images`.
            groups: how many equal parts of the batch have statistics of their own; running ones
                are updated in their order.

        Returns:
            (N, channels, H', W'), by the kernels in channels_last memory, or (N, features).

        Raises:
            InputError: rank, channels, dtype, device or batch do not fit.
        """
        return run_stages([self.stage], x, groups, self.impl, self.process_group)

    def stage(self, shape: tuple[int, ...]) -> Stage:
        """What the block computes for input of a shape, (C, H, W) or (features,)."""
        raise NotImplementedError  # each kind's own

    def _stage(
        self,
        geometry: ConvGeometry,
        out: tuple[int, ...],
        shape: tuple[int, int, int] | None = None,
    ) -> Stage:
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
        return Stage(layer, LayerTensors(self.layer.weight, self.layer.bias), norm, out)

    def extra_repr(self) -> str:
        """Activation, slope and who computes."""
        slope = f", slope={self.slope}" if self.activation == "leaky_relu" else ""
        return f"activation={self.activation}{slope}, impl={self.impl}"

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the released code's initial weights: standard deviation 0.02, gamma around 1.

        A bias in front of batch norm is frozen at 0: its gradient is exactly zero.
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
        kernel: side of the window.
        stride: step of the window.
        padding: zeros around the map, on all sides or (before, after); None for "SAME" on sides
            that the stride divides, of which an odd total pads one more behind.
        batch_norm: whether there is any.
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
        # torch's module knows symmetric padding alone; ours is applied by this block.
        symmetric = self.padding[0] if self.padding[0] == self.padding[1] else 0
        self.layer = nn.Conv2d(in_channels, channels, kernel, stride, symmetric, bias=bias)
        self.norm = nn.BatchNorm2d(channels) if batch_norm else None
        self.reset_parameters()

    def stage(self, shape: tuple[int, ...]) -> Stage:
        """See the base class."""
        _, height, width = _map_shape(shape, self.layer.weight.shape[1], "ConvBlock")
        layer = self.layer
        assert isinstance(layer, nn.Conv2d)
        window = Window(height, width, layer.kernel_size[0], layer.stride[0], *self.padding)
        return self._stage(
            ConvGeometry(window, False), (layer.out_channels, window.rows, window.columns)
        )


class UpconvBlock(Block):
    """Transposed convolution that multiplies the sides by its stride, batch norm, activation.

    Args:
        in_channels: of the input.
        channels: of the output.
        kernel: side of the window, not smaller than the stride.
        stride: what the sides are multiplied by. An odd kernel - stride cuts one more behind.
        batch_norm: whether there is any.
        activation: as of a ConvBlock.
        slope: of a leaky ReLU.
        bias: whether the map has one.
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
            raise InputError(
                f"an UpconvBlock's kernel is at least its stride: {kernel} is below {stride}"
            )
        total = kernel - stride
        self.padding = (total // 2, total - total // 2)
        self.layer = nn.ConvTranspose2d(
            in_channels, channels, kernel, stride, total // 2, bias=bias
        )
        self.norm = nn.BatchNorm2d(channels) if batch_norm else None
        self.reset_parameters()

    def stage(self, shape: tuple[int, ...]) -> Stage:
        """See the base class."""
        _, height, width = _map_shape(shape, self.layer.weight.shape[0], "UpconvBlock")
        layer = self.layer
        assert isinstance(layer, nn.ConvTranspose2d)
        stride = layer.stride[0]
        window = Window(
            height * stride, width * stride, layer.kernel_size[0], stride, *self.padding
        )
        return self._stage(
            ConvGeometry(window, True), (layer.out_channels, window.height, window.width)
        )


class LinearBlock(Block):
    """Fully connected layer, batch norm per feature, activation.

    Args:
        in_features: of the input row; a map's are flattened in the order height, width, channel.
        features: of the output row.
        batch_norm: whether there is any.
        activation: as of a ConvBlock.
        slope: of a leaky ReLU.
        bias: whether the layer has one.
        shape: (height, width, channels) if the output is to be a map (N, channels, height, width)
            in channels_last memory; height * width * channels are then the features.
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
            raise InputError(f"a map of {shape} has {math.prod(shape)} features, not {features}")
        self.shape = shape
        self.layer = nn.Linear(in_features, features, bias=bias)
        self.norm = nn.BatchNorm1d(features) if batch_norm else None
        self.reset_parameters()

    def stage(self, shape: tuple[int, ...]) -> Stage:
        """See the base class."""
        if len(shape) not in (1, 3):
            raise InputError(f"a LinearBlock takes rows or maps, not {len(shape) + 1} dimensions")
        found, needed = math.prod(shape), self.layer.weight.shape[1]
        if found != needed:
            raise InputError(f"this LinearBlock takes {needed} features, not {found} ({shape})")
        features = self.layer.weight.shape[0]
        out = (features,) if self.shape is None else (self.shape[2], *self.shape[:2])
        return self._stage(LINEAR, out, self.shape)


def _map_shape(shape: tuple[int, ...], channels: int, who: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InputError(f"a {who} takes (N, C, H, W), not {len(shape) + 1} dimensions")
    if shape[0] != channels:
        raise InputError(f"this {who} takes {channels} channels, not {shape[0]}")
    return shape[0], shape[1], shape[2]


class Chain(nn.Sequential):
    """Blocks in a row, computed and differentiated as one: no activation between them is stored.

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
        return run_stages(self.stages(), x, groups, self.impl, self.process_group)

    def stages(self) -> list[Callable[[tuple[int, ...]], Stage]]:
        """What each block computes, as a function of its input's shape."""
        stages: list[Callable[[tuple[int, ...]], Stage]] = []
        for block in self:
            if not isinstance(block, Block):
                raise InputError(f"a Chain is made of blocks, not of {type(block).__name__}")
            stages.append(block.stage)
        if not stages:
            raise InputError("a Chain without blocks computes nothing")
        return stages
