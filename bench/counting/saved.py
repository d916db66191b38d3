"""What autograd keeps of a forward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_bytes(run: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that a forward keeps for backward, each storage once, without the module's own."""
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in own:
            kept[t.untyped_storage()._cdata] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    assert out.grad_fn is not None
    return sum(t.untyped_storage().nbytes() for t in kept.values())
