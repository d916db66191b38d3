"""Batch norm over the batches of all ranks: what convert_sync_batchnorm is to torch's layers.

That function replaces torch's batch norms. A block refuses to run with the replacement, which would
share no statistics; the layers that `fuse` made one compute one by one again. This one tells the
blocks, which stay whole.
"""

from typing import TypeVar

from torch import nn

from fastinfogan.nn.blocks import Block, Chain
from fastinfogan.nn.fused_layers import FusedLayer
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup

_Model = TypeVar("_Model", bound=nn.Module)


def synchronise(model: _Model, process_group: ProcessGroup = "world") -> _Model:
    """Share batch-norm statistics across ranks in every block, chain and fused layer of a model.

    Args:
        model: changed in place.
        process_group: "world", a torch.distributed group, or None to end the sharing.

    Returns:
        The model. Every rank must hand in a batch of the same size.
    """
    for module in model.modules():
        if isinstance(module, Block | Chain):
            module.process_group = process_group
        if isinstance(module, FusedLayer) and module.fused_chain is not None:
            module.fused_chain.process_group = process_group
    return model
