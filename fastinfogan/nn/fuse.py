"""`fuse(model)` makes one of a model's layers where it can, `unfuse` makes them what they were.

A convolution, transposed convolution or linear layer with batch norm and / or an activation behind
it becomes one block, blocks in a row become one chain. The layers stay in their places, the objects
that they were, so that state_dict keys, optimizers, .to() and train() go on as before; see
`fused_layers`.

Nothing is guessed. Layers are found in a Sequential, where the order is what it is; and in a module
whose forward is straight-line code and traces alike in training and in evaluation mode. All else is
left, and the report says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from fastinfogan.nn.blocks import Block
from fastinfogan.nn.calls import Sources, runs_of
from fastinfogan.nn.fused_layers import (
    ACTIVATIONS,
    MAPS,
    NORMS,
    FusedChain,
    FusedLayer,
    Unit,
    unlike_a_block,
)
from fastinfogan.nn.run import Implementation


@dataclass
class FusionReport:
    """What `fuse` did.

    Attributes:
        fused: names of the layers of each chain that became one.
        left: names of layers that might have been fused, and why they were not.
    """

    fused: list[tuple[str, ...]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"fused  {' + '.join(names)}" for names in self.fused]
        lines += [f"left   {name}: {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "nothing to fuse"


def fuse(model: nn.Module, *, impl: Implementation = "auto") -> FusionReport:
    """Fuse a model's layers, in place.

    Until `unfuse`, the layers of a chain belong together: code of your own, outside the model, that
    calls some of them alone, or puts the first few into another Sequential, gets the result of all.
    What the model's own methods do is read, and a hook on a layer sees what the layer computes.

    Args:
        model: any module; a single layer has nothing to be fused with.
        impl: who computes the chains, as of a block.

    Returns:
        What was fused, and what was left and why.
    """
    report = FusionReport()
    sources = Sources(model)
    seen: dict[int, int] = {}
    reached: dict[int, str] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        seen[id(module)] = seen.get(id(module), 0) + 1
        for name, child in module.named_children():
            if type(child).forward is nn.Sequential.forward:
                why = sources.why_reached(module, name, whole=True)
                reached[id(child)] = reached.get(id(child)) or why
    for prefix, parent in list(model.named_modules()):
        if isinstance(parent, Block) or not any(_is_map(c) for c in parent.children()):
            continue
        runs, why = runs_of(parent, sources, (*MAPS, *NORMS, *ACTIVATIONS))
        if reached.get(id(parent)):
            runs, why = [], reached[id(parent)]
        for run in runs:
            for units in _chains(parent, run, prefix, seen, report):
                chain = FusedChain(units, parent._modules, impl)
                chain.hold()
                report.fused.append(tuple(_join(prefix, name) for name in chain.names))
        called = {name for run in runs for name in run}
        for name, child in parent.named_children():
            if _is_map(child) and name not in called:
                again = "it is not called exactly once and with its input alone"
                report.left[_join(prefix, name)] = why or again
    return report


def unfuse(model: nn.Module) -> None:
    """Make the layers that `fuse` made one what they were; their state is what it has become."""
    for layer in model.modules():
        if isinstance(layer, FusedLayer) and layer.fused_chain is not None:
            layer.fused_chain.release()


def _is_map(layer: nn.Module) -> bool:
    """Whether it is a map that is not in a chain yet."""
    return isinstance(layer, MAPS) and not isinstance(layer, FusedLayer)


def _chains(
    parent: nn.Module,
    names: Sequence[str],
    prefix: str,
    seen: dict[int, int],
    report: FusionReport,
) -> list[list[Unit]]:
    """Cut a run of children into chains of units."""
    chains: list[list[Unit]] = []
    chain: list[Unit] = []
    at = 0
    while at < len(names):
        child = parent._modules.get(names[at])
        at += 1
        if child is None or not _is_map(child):
            # A fused one keeps what stands behind it.
            chains.append(chain)
            chain = []
            continue
        unit = Unit(child, names=[names[at - 1]])
        why = _refuse(child, seen)
        for kinds, part in ((NORMS, "norm"), (ACTIVATIONS, "activation")):
            following = parent._modules.get(names[at]) if at < len(names) else None
            if isinstance(following, kinds) and not why:
                refused = _refuse(following, seen) or _misfit(child, following)
                if refused:
                    report.left[_join(prefix, names[at])] = refused
                    break
                setattr(unit, part, following)
                unit.names.append(names[at])
                at += 1
        if not why and unit.norm is None and isinstance(child, nn.Linear):
            why = "a linear layer without batch norm may be given any rank"
        if not why and unit.norm is None and unit.activation is None:
            why = "neither batch norm nor an activation follows"
        if why:
            report.left[_join(prefix, unit.names[0])] = why
            chains.append(chain)
            chain = []
            continue
        flat = isinstance(child, nn.Linear)
        if chain and (flat != isinstance(chain[-1].map, nn.Linear)):
            chains.append(chain)
            chain = []
        chain.append(unit)
        if isinstance(unit.activation, nn.Sigmoid | nn.Tanh):
            chains.append(chain)
            chain = []
    chains.append(chain)
    return [c for c in chains if c]


def _refuse(layer: nn.Module, seen: dict[int, int]) -> str:
    """Why a layer cannot be fused whatever stands beside it, or nothing."""
    if type(layer) not in (*MAPS, *NORMS, *ACTIVATIONS):
        return f"{type(layer).__name__} is a subclass, which may compute something else"
    if seen.get(id(layer), 0) > 1:
        return "it stands in more than one place of the model"
    return unlike_a_block(layer)


def _misfit(layer: nn.Module, following: nn.Module) -> str:
    """Why a batch norm cannot follow a layer, or nothing."""
    if isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d):
        flat = isinstance(layer, nn.Linear)
        if flat != isinstance(following, nn.BatchNorm1d):
            return f"{type(following).__name__} does not fit behind {type(layer).__name__}"
        assert isinstance(layer, MAPS)
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        if channels != following.num_features:
            return f"it normalises {following.num_features} features, {channels} come"
    return ""


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
