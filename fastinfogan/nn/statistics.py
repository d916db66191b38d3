"""Batch statistics without a trace: for passes whose batches are not to be remembered."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Iterator[None]:
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
