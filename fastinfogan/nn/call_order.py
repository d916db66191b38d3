"""The order in which a module calls its layers, from its source code and a trace.

`call_sequences` traces a module's forward; `ModelSource` finds other uses of a layer in the methods
of all modules of a model. Where the order is not certain, they return a reason instead.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from torch import fx, nn

_TRACE_ERRORS = (
    fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, LookupError,
    NotImplementedError, AssertionError, NameError, OSError,
)  # fmt: skip
_BRANCHES = (
    ast.If, ast.IfExp, ast.While, ast.For, ast.Try, ast.BoolOp, ast.Match, ast.comprehension,
)  # fmt: skip
_INSIDES = ("children", "named_children", "modules", "named_modules", "get_submodule", "_modules")
_OWN_CHILDREN = ("children", "named_children", "get_submodule", "_modules")
_HARMLESS_OF_SELF = ("super", "isinstance", "type", "id", "hasattr")


@dataclass(frozen=True)
class _Use:
    """An expression `value.name` in a method.

    Attributes:
        owner: the class that the method belongs to.
        method: its name.
        name: of the attribute.
        of_self: whether `value` is the method's own module.
        kind: "call", "read" of an attribute that leads to no layer, or "other".
    """

    owner: type
    method: str
    name: str
    of_self: bool
    kind: str


class ModelSource:
    """The uses of layers in the source of all methods of a model's modules.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._uses: list[_Use] = []
        # By class: a method that passes its module on, indexes it or iterates over its children.
        self._walking: dict[type, str] = {}
        self._held: dict[int, str] = {}
        for kind in {k for module in model.modules() for k in type(module).__mro__}:
            if not kind.__module__.startswith(("torch.", "fastinfogan.nn.")):
                self._read(kind)
        for module in model.modules():
            self._note_attributes(module)

    def why_used_elsewhere(self, parent: nn.Module, name: str, *, whole: bool = False) -> str:
        """Return where a child is used except in its parent's forward, or an empty string.

        Reading a layer's attributes, such as its weight, is allowed; reading the children of a
        Sequential is not.

        Args:
            parent: the child's module.
            name: of the child.
            whole: whether every method may call it, as a Sequential that is fused inside.
        """
        holder = self._held.get(id(parent._modules[name]))
        if holder:
            return f"{holder} holds it, too"
        for use in self._uses:
            if use.name != name or use.kind == "read":
                continue
            if use.of_self and not isinstance(parent, use.owner):
                continue
            own_forward = use.of_self and use.method == "forward"
            if use.kind == "call" and (whole or own_forward):
                continue
            return f"{use.owner.__name__}.{use.method} may use {name} or its layers one by one"
        return ""

    def why_children_used(self, parent: nn.Module) -> str:
        """Return where a module's children are used without their names, or an empty string."""
        for kind in type(parent).__mro__:
            if kind in self._walking:
                return self._walking[kind]
        return ""

    def _read(self, kind: type) -> None:
        for method, attribute in vars(kind).items():
            function = _function_of(attribute)
            definition = definition_of(function) if function is not None else None
            if function is None or definition is None:
                continue
            own = own_name(definition)
            roots: list[ast.AST] = [definition]
            if method == "__init__":
                # __init__ calls no layer, but functions that it defines may.
                inner = ast.Lambda | ast.FunctionDef
                roots = [n for n in ast.iter_child_nodes(definition) for n in _below(n, inner)]
            for root in roots:
                self._uses += _uses_in(root, own, kind, method, function.__globals__)
                if uses_whole_module(root, own):
                    self._walking[kind] = f"{kind.__name__}.{method} may use its layers"

    def _note_attributes(self, module: nn.Module) -> None:
        """Record modules that attributes hold outside the module tree."""
        for name, value in vars(module).items():
            if name in ("_modules", "fused_chain"):
                continue
            if isinstance(value, dict):
                value = list(value.values())
            for each in value if isinstance(value, list | tuple | set) else (value,):
                if isinstance(each, nn.Module):
                    self._held[id(each)] = f"{type(module).__name__}.{name}"


def _function_of(attribute: object) -> FunctionType | None:
    """Return the function of a method, property or decorated function, or None."""
    for inner in ("fget", "func", "__func__"):
        attribute = getattr(attribute, inner, attribute)
    found = inspect.unwrap(attribute) if callable(attribute) else None
    return found if isinstance(found, FunctionType) else None


def definition_of(function: Any) -> ast.FunctionDef | None:  # noqa: ANN401
    """Return the syntax tree of a function, or None if its source is not available."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return tree.body[0] if tree.body and isinstance(tree.body[0], ast.FunctionDef) else None


def own_name(definition: ast.FunctionDef) -> str:
    """Return the name of a method's first argument, usually self."""
    arguments = definition.args.posonlyargs + definition.args.args
    return arguments[0].arg if arguments else "self"


def uses_whole_module(root: ast.AST, own: str) -> bool:
    """Return whether code passes its module on, indexes it or iterates over its children."""
    harmless: set[ast.AST] = set()
    for node in ast.walk(root):
        match node:
            case ast.Attribute(value=ast.Name(id=name) as value, attr=attr) if name == own:
                if attr not in _OWN_CHILDREN:
                    harmless.add(value)
            case ast.Call(func=ast.Name(id=function)) if function in _HARMLESS_OF_SELF:
                harmless.update(node.args)
            case ast.Return(value=ast.Name() as value):
                harmless.add(value)
    names = (n for n in ast.walk(root) if isinstance(n, ast.Name) and n.id == own)
    return any(n not in harmless for n in names)


def _below(root: ast.AST, kinds: Any) -> list[ast.AST]:  # noqa: ANN401
    return [node for node in ast.walk(root) if isinstance(node, kinds)]


def _uses_in(
    root: ast.AST, own: str, owner: type, method: str, known: dict[str, Any]
) -> Iterator[_Use]:
    kinds: dict[ast.AST, str] = {}
    for node in ast.walk(root):
        if isinstance(node, ast.Attribute) and node.attr not in _INSIDES:
            kinds[node.value] = "read"
        # A call without arguments is a tensor's method: x.relu()
        if isinstance(node, ast.Call):
            kinds[node.func] = "call" if node.args or node.keywords else "read"
    for node in ast.walk(root):
        if isinstance(node, ast.Attribute) and not _is_from_module(node.value, known):
            of_self = isinstance(node.value, ast.Name) and node.value.id == own
            yield _Use(owner, method, node.attr, of_self, kinds.get(node, "other"))


def _is_from_module(node: ast.expr, known: dict[str, Any]) -> bool:
    """Return whether an expression is a Python module: torch, F, torch.nn.functional."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and isinstance(known.get(node.id), ModuleType)


def call_sequences(
    parent: nn.Module, source: ModelSource, kinds: tuple[type, ...]
) -> tuple[list[list[str]], str]:
    """Return names of children each of which is called with the result of the one before.

    Args:
        parent: the module.
        source: of the whole model.
        kinds: layers that only the module's forward may call.

    Returns:
        The sequences, or an empty list and why they are not certain.
    """
    if "forward" in vars(parent):
        return [], "its module's forward was replaced"
    why = source.why_children_used(parent)
    for name, child in parent.named_children():
        if not why and isinstance(child, kinds):
            why = source.why_used_elsewhere(parent, name)
    if why:
        return [], why
    if type(parent).forward is nn.Sequential.forward:
        return [[name for name, _ in parent.named_children()]], ""
    if isinstance(parent, nn.ModuleList | nn.ModuleDict):
        return [], "its container has no order of calls"
    why = _branches(parent)
    if why:
        return [], why
    graphs = []
    mode = parent.training
    try:
        for parent.training in (True, False):
            graphs.append(_ChildCalls().trace(parent))
    except _TRACE_ERRORS as error:
        return [], f"its module's forward cannot be traced: {(str(error) or '?').splitlines()[0]}"
    finally:
        parent.training = mode
    training, evaluation = (_sequences(graph) for graph in graphs)
    if training != evaluation:
        return [], "its module calls its layers differently in evaluation mode"
    return training, ""


class _ChildCalls(fx.Tracer):
    """Tracer of a module with its children as leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _branches(parent: nn.Module) -> str:
    """Return why a forward is not straight-line code, or an empty string."""
    definition = definition_of(type(parent).forward)
    if definition is None:
        return "its module's forward has no source to read"
    if definition.decorator_list:
        return "its module's forward is decorated"
    own = own_name(definition)
    children = {name for name, _ in parent.named_children()}
    for node in ast.walk(definition):
        if isinstance(node, _BRANCHES):
            return "its module's forward branches or loops"
        if isinstance(node, ast.With):
            return "its module's forward has a with block, which may be no_grad or autocast"
        match node:
            case ast.Call(func=ast.Name(id="super")):
                return "its module's forward calls its super class's, which may branch"
            case ast.Call(func=ast.Attribute(value=ast.Name(id=value), attr=name)) if value == own:
                if name not in children:
                    return f"its module's forward calls self.{name}, which may branch"
    return ""


def _sequences(graph: fx.Graph) -> list[list[str]]:
    """Return sequences of calls in which only the next call uses each result."""
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
            # A result that is used twice ends a sequence; a child called twice is in none.
            if not once or len(node.args) != 1 or node.kwargs:
                break
            run.append(str(node.target))
            users = list(node.users)
            if len(users) != 1 or users[0].op != "call_module" or users[0] in taken:
                break
            node = users[0]
        runs.append(run)
    return runs
