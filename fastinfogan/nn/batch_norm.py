"""Batch-norm statistics of whole models: not updated for some passes, or shared across ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastinfogan.nn.blocks import Block, Chain
from fastinfogan.nn.fused_layers import FusedLayer
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup

_Model = TypeVar("_Model", bound=nn.Module)


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


def synchronise(model: _Model, process_group: ProcessGroup = "world") -> _Model:
    """Share batch-norm statistics across ranks in every block, chain and fused layer of a model.

    It takes the place of torch's convert_sync_batchnorm, whose SyncBatchNorm layers cannot be part
    of a block, and which makes fused layers compute one by one.

    Args:
        model: changed in place.
        process_group: "world", a torch.distributed group, or None to stop sharing. Every rank must
            pass batches of the same size.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, Block | Chain):
            module.process_group = process_group
        if isinstance(module, FusedLayer) and module.fused_chain is not None:
            module.fused_chain.process_group = process_group
    return model
