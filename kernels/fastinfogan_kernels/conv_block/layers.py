"""A chain as data: its layers, their tensors and its input."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.geometry import ConvGeometry
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup
from fastinfogan_kernels.errors import InputError

ActivationName = Literal["none", "leaky_relu", "sigmoid", "tanh"]


@dataclass(frozen=True)
class Layer:
    """A block, for inputs of one size.

    Attributes:
        geometry: of its convolution; `LINEAR` for a fully connected layer.
        norm: whether batch norm follows.
        activation: the last step; all but the last layer of a chain have "none" or "leaky_relu".
        slope: of "leaky_relu": 0 for ReLU, 1 for none.
        eps: added to batch norm's variance.
        momentum: weight of the new statistics in batch norm's running ones.
        shape: (height, width, channels) into which a fully connected layer's features are reshaped.

    Raises:
        InputError: the slope is negative or not finite.
    """

    geometry: ConvGeometry
    norm: bool
    activation: ActivationName = "leaky_relu"
    slope: float = 0.1
    eps: float = 1e-5
    momentum: float = 0.1
    shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.slope < math.inf:
            raise InputError(
                f"the slope of a leaky ReLU is finite and not negative, not {self.slope}"
            )

    @property
    def flat(self) -> bool:
        """Whether it is a fully connected layer."""
        return self.geometry.flat

    @property
    def loaded_slope(self) -> float:
        """The slope that the next layer applies while it loads this one's y."""
        return self.slope if self.activation == "leaky_relu" else 1.0


class LayerTensors(NamedTuple):
    """A layer's tensors.

    Attributes:
        weight: in torch's layout, any strides.
        bias: (channels,) or None.
        gamma: (features,) or None without batch norm.
        beta: likewise.
        running_mean: (features,) or None; updated in place.
        running_var: likewise.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None


@dataclass(frozen=True)
class Images:
    """Images as they lie in memory, and what turns them into a network's input.

    Attributes:
        data: uint8 or floating point (M, height, width, channels), contiguous.
        index: int64 (N,): which images make the batch; None for all of them.
        scale: by which a pixel is multiplied.
        shift: what is added then.
        dtype: of the feature maps computed from it.

    Raises:
        InputError: `data` or `index` has another dtype, shape or layout.
    """

    data: Tensor
    index: Tensor | None = None
    scale: float = 1.0
    shift: float = 0.0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.data.dim() != 4 or not self.data.is_contiguous():
            raise InputError("images are (M, height, width, channels) and contiguous")
        if self.index is not None and (self.index.dtype != torch.int64 or self.index.dim() != 1):
            raise InputError(
                f"the index of images is int64 in one dimension, not {self.index.dtype} in "
                f"{self.index.dim()}"
            )

    @property
    def count(self) -> int:
        """N, the images in the batch."""
        return len(self.data) if self.index is None else len(self.index)

    def materialize(self) -> Tensor:
        """Return the input written out: (N, C, H, W), channels_last."""
        data = self.data if self.index is None else self.data.index_select(0, self.index)
        wide = data.to(torch.promote_types(self.dtype, torch.float32))
        scaled = wide * self.scale + self.shift if self._scales else data
        return scaled.to(self.dtype).permute(0, 3, 1, 2)

    @property
    def _scales(self) -> bool:
        return (self.scale, self.shift) != (1.0, 0.0) or not self.data.is_floating_point()


@dataclass(frozen=True)
class ChainInput:
    """How a chain reads its input tensor, and with which processes it shares statistics.

    Attributes:
        dtype: of the feature maps computed from the input.
        process_group: of processes with which statistics are shared.
        index: which images of the input make the batch, or None for all of it.
        scale: by which pixels are multiplied while loading.
        shift: what is added then.
    """

    dtype: torch.dtype
    process_group: ProcessGroup = None
    index: Tensor | None = None
    scale: float = 1.0
    shift: float = 0.0
