"""`fuse(model)` puts fused blocks in the place of a model's own layers, `unfuse` takes them out.

A convolution, transposed convolution or linear layer with batch norm and / or an activation behind
it becomes one block, blocks in a row become one chain. Each layer's place in the model stays taken
by a stand-in that shares its parameters and buffers, so that state_dict keys, optimizers, .to() and
train() go on as before; the first stand-in computes, the others hand on what they are given.

Nothing is guessed. Layers are found in a Sequential, where the order is what it is; and in a module
whose forward is straight-line code and traces alike in training and in evaluation mode. All else is
left, and the report says why.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from fastinfogan.nn.blocks import Block
from fastinfogan.nn.run import Implementation
from fastinfogan.nn.stand_ins import (
    ACTIVATIONS,
    MAPS,
    NORMS,
    Fused,
    StandIn,
    Unit,
    padding_of,
)

_TRACE_ERRORS = (
    fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, LookupError,
    NotImplementedError, AssertionError, NameError, OSError,
)  # fmt: skip
_BRANCHES = (
    ast.If, ast.IfExp, ast.While, ast.For, ast.Try, ast.BoolOp, ast.Match, ast.comprehension,
)  # fmt: skip
_INSIDES = ("children", "named_children", "modules", "named_modules", "get_submodule", "_modules")


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

    Args:
        model: any module; a single layer cannot be replaced in itself.
        impl: who computes the chains, "auto", "triton" or "reference".

    Returns:
        What was fused, and what was left and why.
    """
    report = FusionReport()
    seen: dict[int, int] = {}
    reached: dict[int, str] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        seen[id(module)] = seen.get(id(module), 0) + 1
        for name, child in module.named_children():
            if type(child).forward is nn.Sequential.forward:
                why = _reached_into(module, name, whole=True)
                reached[id(child)] = reached.get(id(child)) or why
    for prefix, parent in list(model.named_modules()):
        if isinstance(parent, StandIn | Block):
            continue
        if not any(isinstance(c, MAPS) for c in parent.children()):
            continue
        runs, why = _runs(parent, reached.get(id(parent), ""))
        for run in runs:
            for chain in _chains(parent, run, prefix, seen, report):
                _replace(parent, chain, prefix, impl, report)
        called = {name for run in runs for name in run}
        for name, child in parent.named_children():
            if isinstance(child, MAPS) and name not in called:
                again = "it is not called exactly once and with its input alone"
                report.left[_join(prefix, name)] = why or again
    return report


def unfuse(model: nn.Module) -> None:
    """Put the layers that `fuse` replaced back, in place; their state is what it has become."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, StandIn):
                parent._modules[name] = child.original


def _runs(parent: nn.Module, reached: str) -> tuple[list[list[str]], str]:
    """Names of children called one after another, each with the result before; or why not."""
    if "forward" in vars(parent):
        return [], "its module's forward was replaced"
    if type(parent).forward is nn.Sequential.forward:
        return ([], reached) if reached else ([[name for name, _ in parent.named_children()]], "")
    if isinstance(parent, nn.ModuleList | nn.ModuleDict):
        return [], "its container has no order of calls"
    why = _branches(parent)
    for name, child in parent.named_children():
        if not why and isinstance(child, (*MAPS, *NORMS, *ACTIVATIONS)):
            why = _reached_into(parent, name)
    if why:
        return [], why
    graphs = []
    mode = parent.training
    try:
        for parent.training in (True, False):
            graphs.append(_Calls().trace(parent))
    except _TRACE_ERRORS as error:
        return [], f"its module's forward cannot be traced: {str(error).splitlines()[0]}"
    finally:
        parent.training = mode
    training, evaluation = (_call_runs(graph) for graph in graphs)
    if training != evaluation:
        return [], "its module calls its layers otherwise in evaluation mode"
    return training, ""


class _Calls(fx.Tracer):
    """Traces a module down to its children's calls, and no further."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _branches(parent: nn.Module) -> str:
    """Why a forward is not straight-line code, or nothing."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(parent).forward)))
    except (OSError, TypeError, SyntaxError):
        return "its module's forward has no source to read"
    children = {name for name, _ in parent.named_children()}
    for node in ast.walk(tree):
        if isinstance(node, _BRANCHES):
            return "its module's forward branches or loops"
        if isinstance(node, ast.With):
            return "its module's forward has a with block, which may be no_grad or autocast"
        match node:
            case ast.Call(func=ast.Name(id="super")):
                return "its module's forward calls its super class's, which may branch"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                if name not in children:
                    return f"its module's forward calls self.{name}, which may branch"
    return ""


def _reached_into(parent: nn.Module, name: str, *, whole: bool = False) -> str:
    """How a module's methods may use a child other than by forward calling it, or nothing.

    What is read of its attributes, its weight say, is as it was; a Sequential's children are not.
    With `whole` the child may be called by every method, as a Sequential that stays one.
    """
    methods = {
        key: function
        for kind in reversed(type(parent).__mro__)
        if not kind.__module__.startswith("torch.")
        for key, function in vars(kind).items()
        if inspect.isfunction(function) and key != "__init__"
    }
    for method, function in methods.items():
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            continue
        harmless = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr not in _INSIDES:
                harmless.add(node.value)
            if isinstance(node, ast.Call) and (whole or method == "forward"):
                harmless.add(node.func)
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id="self"), attr=attr) if attr == name:
                    if node not in harmless:
                        return f"its module's {method} may use {name} or its layers one by one"
    return ""


def _call_runs(graph: fx.Graph) -> list[list[str]]:
    """Chains of calls in which each result is used by the next call and by nothing else."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    runs: list[list[str]] = []
    taken: set[fx.Node] = set()
    for node in calls:
        if node in taken:
            continue
        run = []
        while True:
            taken.add(node)
            once = targets.count(str(node.target)) == 1
            # A result that is used twice may still end a run, and a call made twice is none.
            if not once or len(node.args) != 1 or node.kwargs:
                break
            run.append(str(node.target))
            users = list(node.users)
            if len(users) != 1 or users[0].op != "call_module" or users[0] in taken:
                break
            node = users[0]
        runs.append(run)
    return runs


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
        if child is None or not isinstance(child, MAPS):
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
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
        layer._backward_pre_hooks, layer._state_dict_hooks, layer._state_dict_pre_hooks,
        layer._load_state_dict_pre_hooks, layer._load_state_dict_post_hooks,
    )  # fmt: skip
    if any(hooks):
        return "it has hooks"
    if "forward" in vars(layer):
        return "its forward was replaced"
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return _refuse_convolution(layer)
    if isinstance(layer, NORMS) and layer.momentum is None:
        return "its running statistics are cumulative averages (momentum None)"
    if isinstance(layer, nn.LeakyReLU) and not 0 <= layer.negative_slope < math.inf:
        return f"its slope {layer.negative_slope} is negative or not finite"
    return ""


def _refuse_convolution(layer: nn.Conv2d | nn.ConvTranspose2d) -> str:
    square = (layer.kernel_size, layer.stride, layer.dilation, layer.output_padding)
    if any(pair[0] != pair[1] for pair in square) or (
        not isinstance(layer.padding, str) and layer.padding[0] != layer.padding[1]
    ):
        return "its kernel, stride or padding is not square"
    if layer.groups != 1 or layer.dilation[0] != 1:
        return "it has groups or dilation"
    if layer.padding_mode != "zeros":
        return f"its padding is {layer.padding_mode}, not zeros"
    if isinstance(layer, nn.ConvTranspose2d):
        before, after = padding_of(layer)
        if layer.kernel_size[0] - before - after != layer.stride[0] or after < 0:
            return "its output is not its input's size times the stride"
    return ""


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


def _replace(
    parent: nn.Module, chain: list[Unit], prefix: str, impl: Implementation, report: FusionReport
) -> None:
    names = [name for unit in chain for name in unit.names]
    layers = [layer for unit in chain for layer in unit.layers()]
    for name, layer in zip(names[1:], layers[1:], strict=True):
        parent._modules[name] = StandIn(layer)
    parent._modules[names[0]] = Fused(chain, impl)
    report.fused.append(tuple(_join(prefix, name) for name in names))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
