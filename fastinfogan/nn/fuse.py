"""`fuse(model)` fuses the layers of a model in place, `unfuse` restores them.

A convolution, transposed convolution or linear layer that batch norm or an activation follows
becomes one block; blocks in a row become one chain. The layers remain the same objects in the same
places: state_dict keys, optimizers, .to() and train() work as before, see `fused_layers`.

Layers are fused where the order of their calls is certain: in a Sequential, and in a module whose
forward is straight-line code and has the same trace in training and evaluation mode. All others are
left as they are, and the report says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from fastinfogan.nn.blocks import Block, Chain
from fastinfogan.nn.call_order import ModelSource, call_sequences
from fastinfogan.nn.forward import Implementation
from fastinfogan.nn.fused_layers import (
    ACTIVATION_MODULES,
    LAYERS,
    NORMS,
    FusedChain,
    FusedLayer,
    LayerGroup,
    unsupported,
)
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass
class FusionReport:
    """The result of `fuse`.

    Attributes:
        fused: names of the layers of each fused chain.
        left: names of layers that were not fused, and why.
    """

    fused: list[tuple[str, ...]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"fused  {' + '.join(names)}" for names in self.fused]
        lines += [f"left   {name}: {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "nothing to fuse"


def fuse(model: nn.Module, *, impl: Implementation = "auto") -> FusionReport:
    """Fuse a model's layers in place.

    Until `unfuse`, code outside the model must not call some layers of a chain without the others:
    the first layer returns the result of all. The model's own methods are checked for such calls,
    and a hook on a layer makes its chain run layer by layer.

    Args:
        model: any module that contains layers.
        impl: the backend of the chains, see `Block`.

    Returns:
        What was fused, what was not, and why.
    """
    report = FusionReport()
    source = ModelSource(model)
    occurrences: dict[int, int] = {}
    used_elsewhere: dict[int, str] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        occurrences[id(module)] = occurrences.get(id(module), 0) + 1
        for name, child in module.named_children():
            if type(child).forward is nn.Sequential.forward:
                why = source.why_used_elsewhere(module, name, whole=True)
                used_elsewhere[id(child)] = used_elsewhere.get(id(child)) or why
    for prefix, parent in list(model.named_modules()):
        if isinstance(parent, Block) or not any(_is_fusible(c) for c in parent.children()):
            continue
        runs, why = call_sequences(parent, source, (*LAYERS, *NORMS, *ACTIVATION_MODULES))
        if used_elsewhere.get(id(parent)):
            runs, why = [], used_elsewhere[id(parent)]
        for run in runs:
            for groups in _chains(parent, run, prefix, occurrences, report):
                chain = FusedChain(groups, parent._modules, impl)
                chain.attach()
                report.fused.append(tuple(_join(prefix, name) for name in chain.names))
        called = {name for run in runs for name in run}
        for name, child in parent.named_children():
            if _is_fusible(child) and name not in called:
                default = "it is not called exactly once with one argument"
                report.left[_join(prefix, name)] = why or default
    return report


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`; parameters and buffers are as trained since."""
    for layer in model.modules():
        if isinstance(layer, FusedLayer) and layer.fused_chain is not None:
            layer.fused_chain.detach()


def _is_fusible(layer: nn.Module) -> bool:
    """Return whether it is a convolution or linear layer that is not fused yet."""
    return isinstance(layer, LAYERS) and not isinstance(layer, FusedLayer)


def _chains(
    parent: nn.Module,
    names: Sequence[str],
    prefix: str,
    occurrences: dict[int, int],
    report: FusionReport,
) -> list[list[LayerGroup]]:
    """Split children that are called in this order into chains of groups."""
    chains: list[list[LayerGroup]] = []
    chain: list[LayerGroup] = []
    at = 0
    while at < len(names):
        child = parent._modules.get(names[at])
        at += 1
        if child is None or not _is_fusible(child):
            chains.append(chain)
            chain = []
            continue
        group = LayerGroup(child, names=[names[at - 1]])
        why = _unsupported(child, occurrences)
        for kinds, part in ((NORMS, "norm"), (ACTIVATION_MODULES, "activation")):
            following = parent._modules.get(names[at]) if at < len(names) else None
            if isinstance(following, kinds) and not why:
                mismatch = _unsupported(following, occurrences) or _norm_mismatch(child, following)
                if mismatch:
                    report.left[_join(prefix, names[at])] = mismatch
                    break
                setattr(group, part, following)
                group.names.append(names[at])
                at += 1
        if not why and group.norm is None and isinstance(child, nn.Linear):
            why = "a linear layer without batch norm may get inputs of any rank"
        if not why and group.norm is None and group.activation is None:
            why = "neither batch norm nor an activation follows"
        if why:
            report.left[_join(prefix, group.names[0])] = why
            chains.append(chain)
            chain = []
            continue
        flat = isinstance(child, nn.Linear)
        if chain and (flat != isinstance(chain[-1].layer, nn.Linear)):
            chains.append(chain)
            chain = []
        chain.append(group)
        if isinstance(group.activation, nn.Sigmoid | nn.Tanh):
            chains.append(chain)
            chain = []
    chains.append(chain)
    return [c for c in chains if c]


def _unsupported(layer: nn.Module, occurrences: dict[int, int]) -> str:
    """Return why a layer cannot be fused, whatever precedes or follows it, or an empty string."""
    if type(layer) not in (*LAYERS, *NORMS, *ACTIVATION_MODULES):
        return f"{type(layer).__name__} is a subclass, which may compute something else"
    if occurrences.get(id(layer), 0) > 1:
        return "it is in more than one place of the model"
    return unsupported(layer)


def _norm_mismatch(layer: nn.Module, following: nn.Module) -> str:
    """Return why a batch norm cannot follow a layer, or an empty string."""
    if isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d):
        flat = isinstance(layer, nn.Linear)
        if flat != isinstance(following, nn.BatchNorm1d):
            return f"{type(following).__name__} does not fit after {type(layer).__name__}"
        assert isinstance(layer, LAYERS)
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        if channels != following.num_features:
            return f"it normalises {following.num_features} features, its input has {channels}"
    return ""


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


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
