"""The three blocks that every network here is made of.

Each computes act(bn(map(x))). `groups` cuts the batch into that many equal parts whose batch-norm
statistics are separate, so that real and generated images pass through D in one call and yet are
two batches. Biases in front of batch norm are frozen: their gradient is exactly zero, and Adam
would walk them along the rounding noise of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fastinfogan.errors import InputError
from fastinfogan.experiments import Activation

_INIT_DEVIATION = 0.02


@contextmanager
def statistics_frozen(*modules: nn.Module) -> Iterator[None]:
    """Batch norm below these modules uses batch statistics and leaves the running ones alone."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, track in zip(norms, before, strict=True):
            norm.track_running_stats = track


class _Block(nn.Module):
    """What the three have in common: everything after the linear map."""

    norm: _BatchNorm | None

    def __init__(self, activation: Activation, slope: float) -> None:
        super().__init__()
        self.activation = activation
        self.slope = slope

    def linear_map(self, x: Tensor) -> Tensor:
        raise NotImplementedError  # each block's own

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        """Apply the block.

        Args:
            x: (B, C, H, W), best in channels_last memory, or (B, features) for a LinearBlock.
            groups: how many equal parts of the batch have statistics of their own; real images
                first, generated ones second, and running statistics are updated in that order.

        Returns:
            (B, channels, H', W') or (B, features).

        Raises:
            InputError: the batch cannot be cut into `groups`.
        """
        y = self.linear_map(x)
        if self.norm is not None:
            if groups == 1:
                y = self.norm(y)
            else:
                if y.shape[0] % groups:
                    raise InputError(
                        f"a batch of {y.shape[0]} does not divide into {groups} groups"
                    )
                y = torch.cat([self.norm(part) for part in y.chunk(groups)])
        return self._activate(y)

    def _activate(self, y: Tensor) -> Tensor:
        # In place is sound: neither batch norm nor the maps read their own output in backward.
        match self.activation:
            case "none":
                return y
            case "relu":
                return F.relu_(y)
            case "leaky_relu":
                return F.leaky_relu_(y, self.slope)
            case "sigmoid":
                return torch.sigmoid(y)
            case "tanh":
                return torch.tanh(y)

    def extra_repr(self) -> str:
        slope = f", slope={self.slope}" if self.activation == "leaky_relu" else ""
        return f"activation={self.activation}{slope}"

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the released code's initial weights: standard deviation 0.02, gamma around 1."""
        layer = self.layer
        if isinstance(layer, nn.Conv2d):
            bound = 2 * _INIT_DEVIATION
            nn.init.trunc_normal_(layer.weight, 0.0, _INIT_DEVIATION, -bound, bound, generator)
        else:
            nn.init.normal_(layer.weight, 0.0, _INIT_DEVIATION, generator)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        layer.bias.requires_grad_(self.norm is None)
        if self.norm is not None:
            self.norm.reset_running_stats()
            nn.init.normal_(self.norm.weight, 1.0, _INIT_DEVIATION, generator)
            nn.init.zeros_(self.norm.bias)

    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear


class ConvBlock(_Block):
    """Convolution with "SAME" padding on sides that the stride divides, batch norm, activation.

    Args:
        in_channels: of the input.
        channels: of the output.
        kernel: side of the window.
        stride: step of the window.
        batch_norm: whether there is any.
        activation: its name.
        slope: of a leaky ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        stride: int,
        *,
        batch_norm: bool = True,
        activation: Activation = "leaky_relu",
        slope: float = 0.1,
    ) -> None:
        super().__init__(activation, slope)
        total = max(kernel - stride, 0)
        # An odd total pads one more behind than before (4x4, stride 1: 1 and 2).
        self.padding = (total // 2, total - total // 2)
        symmetric = self.padding[0] if self.padding[0] == self.padding[1] else 0
        self.layer: nn.Conv2d = nn.Conv2d(in_channels, channels, kernel, stride, symmetric)
        self.norm = nn.BatchNorm2d(channels) if batch_norm else None
        self.reset_parameters()

    def linear_map(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        before, after = self.padding
        if before != after:
            x = F.pad(x, (before, after, before, after))
        return self.layer(x)  # type: ignore[no-any-return]


class UpconvBlock(_Block):
    """Transposed convolution that multiplies the sides by its stride, batch norm, activation.

    Args:
        in_channels: of the input.
        channels: of the output.
        kernel: side of the window, not smaller than the stride.
        stride: what the sides are multiplied by.
        batch_norm: whether there is any.
        activation: its name.
        slope: of a leaky ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        stride: int,
        *,
        batch_norm: bool = True,
        activation: Activation = "relu",
        slope: float = 0.1,
    ) -> None:
        super().__init__(activation, slope)
        total = kernel - stride
        # The adjoint of "SAME": an odd total cuts one more behind than before.
        self.excess = total % 2
        self.layer: nn.ConvTranspose2d = nn.ConvTranspose2d(
            in_channels, channels, kernel, stride, total // 2
        )
        self.norm = nn.BatchNorm2d(channels) if batch_norm else None
        self.reset_parameters()

    def linear_map(self, x: Tensor) -> Tensor:
        """The transposed convolution alone."""
        y: Tensor = self.layer(x)
        if self.excess:
            y = y[..., : -self.excess, : -self.excess].contiguous(memory_format=torch.channels_last)
        return y


class LinearBlock(_Block):
    """Linear map, batch norm per feature, activation.

    Args:
        in_features: of the input row; a map's are flattened in the order height, width, channel.
        features: of the output row.
        batch_norm: whether there is any.
        activation: its name.
        slope: of a leaky ReLU.
        shape: (height, width, channels) if the output is to be a map (B, channels, height, width)
            in channels_last memory; height * width * channels are then the features.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        batch_norm: bool = True,
        activation: Activation = "leaky_relu",
        slope: float = 0.1,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(activation, slope)
        self.shape = shape
        self.layer: nn.Linear = nn.Linear(in_features, features)
        self.norm = nn.BatchNorm1d(features) if batch_norm else None
        self.reset_parameters()

    def linear_map(self, x: Tensor) -> Tensor:
        """The linear map alone, on rows or on maps."""
        if x.dim() == 4:
            x = x.permute(0, 2, 3, 1).flatten(1)
        return self.layer(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        """Apply the block, see the base class."""
        y = super().forward(x, groups)
        return y if self.shape is None else y.view(-1, *self.shape).permute(0, 3, 1, 2)
