"""How a chain's input is read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block.sync_batch_norm import Group


@dataclass(frozen=True)
class Source:
    """What a chain is told of its input, beside the tensor, and of whom it shares statistics with.

    Attributes:
        dtype: of the maps computed from the input.
        process_group: of processes with which statistics are shared.
        index: which images of the input make the batch, or None for all of it.
        scale: by which pixels are multiplied while loading.
        shift: what is added then.
    """

    dtype: torch.dtype
    process_group: Group = None
    index: Tensor | None = None
    scale: float = 1.0
    shift: float = 0.0
