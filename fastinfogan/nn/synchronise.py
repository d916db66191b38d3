"""Batch norm over the batches of all ranks: what convert_sync_batchnorm is to torch's layers.

That function looks for torch's batch norms and would drop a fused block's activation, or not find
its batch norm at all; this one tells the blocks.
"""

from typing import TypeVar

from torch import nn

from fastinfogan.kernels.ranks import Group
from fastinfogan.nn.blocks import Block, Chain
from fastinfogan.nn.stand_ins import Fused

_Model = TypeVar("_Model", bound=nn.Module)


def synchronise(model: _Model, process_group: Group = "world") -> _Model:
    """Share batch-norm statistics across ranks in every block, chain and fused layer of a model.

    Args:
        model: changed in place.
        process_group: "world", a torch.distributed group, or None to end the sharing.

    Returns:
        The model. Every rank must hand in a batch of the same size.
    """
    for module in model.modules():
        if isinstance(module, Block | Chain | Fused):
            module.process_group = process_group
    return model
