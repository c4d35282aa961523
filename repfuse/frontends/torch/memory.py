"""Which names of a trace share memory, and what an in-place operation changes.

torch.fx nodes are names, not values: after `x.relu_()` the name x means something else, and
so does every view of it. Here each node has a storage; a change gives all names of a storage
a new meaning.
"""

from __future__ import annotations

import inspect
import operator
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from repfuse.frontends.torch.calls import is_plain

__all__ = ["Memory", "changed_arguments", "changed_tensors", "is_its_argument", "may_alias"]

IN_PLACE_OPERATORS = {
    getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "setitem")
}
FRESH_OPERATORS = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.matmul,
    operator.pow, torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.matmul, torch.cat,
    torch.concat, torch.stack, torch.sum, torch.mean, torch.relu, torch.sigmoid, torch.tanh,
    torch.bmm, torch.softmax, torch.pow, torch.sqrt, torch.exp, torch.clone, torch.avg_pool1d,
}  # fmt: skip
FRESH_METHODS = {
    "add", "sub", "mul", "div", "neg", "matmul", "pow", "sum", "mean", "relu", "sigmoid", "tanh",
    "softmax", "clone", "sqrt", "exp", "rsqrt",
}  # fmt: skip
ALIASING_FUNCTIONS = ("dropout", "pad", "interpolate", "adaptive", "unfold", "fold", "upsample")


class Memory:
    """Storages of the nodes of one trace, by union-find; twins are the same tensor for certain."""

    def __init__(self) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}
        self._members: dict[fx.Node, list[fx.Node]] = {}
        self._first: dict[fx.Node, fx.Node] = {}

    def own(self, node: fx.Node) -> None:
        """The node's value lies in memory of its own."""
        self._parent[node] = node
        self._members[node] = [node]
        self._first.pop(node, None)

    def alias(self, node: fx.Node, source: fx.Node) -> None:
        """The node is the very tensor that the source is."""
        self.share(node, [source])
        self._first[node] = self._first.get(source, source)

    def are_twins(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether both are the same tensor for certain, so that they change together."""
        return self._first.get(node, node) is self._first.get(other, other)

    def share(self, node: fx.Node, sources: list[fx.Node]) -> None:
        """The node's value may lie in the memory of any of the sources."""
        self.own(node)
        for source in sources:
            mine, theirs = self.storage(node), self.storage(source)
            if mine is not theirs:
                self._parent[mine] = theirs
                self._members[theirs].extend(self._members.pop(mine))

    def storage(self, node: fx.Node) -> fx.Node:
        if node not in self._parent:
            self.own(node)
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def names(self, node: fx.Node) -> list[fx.Node]:
        """All nodes that share memory with this one."""
        return self._members[self.storage(node)]


def changed_tensors(
    graph: fx.Graph, modules: dict[str, nn.Module], tensors: dict[str, torch.Tensor]
) -> set[fx.Node]:
    """The nodes whose memory some operation of the trace changes, at whatever time."""
    memory, first_read = Memory(), dict[int, fx.Node]()
    changed: list[fx.Node] = []
    for node in graph.nodes:
        memory.own(node)
        targets = changed_arguments(node, modules)
        if node.op == "get_attr":
            tensor = tensors.get(str(node.target))
            if tensor is not None:
                memory.share(node, [first_read.setdefault(_storage_of(tensor), node)])
        elif targets:
            changed.extend(targets)
            memory.share(node, targets)
        elif node.op not in ("placeholder", "output") and may_alias(node, modules):
            sources = node.all_input_nodes
            memory.share(node, sources[:1] if node.op == "call_method" else sources)
    return {name for node in changed for name in memory.names(node)}


def _storage_of(tensor: torch.Tensor) -> int:
    """What two tensors that share memory have in common."""
    if tensor.is_meta or nn.parameter.is_lazy(tensor):
        return id(tensor)
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return id(tensor)


def may_alias(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the result may lie in the memory of an argument."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        home = type(module).__module__
        passes = isinstance(module, nn.Identity | nn.Flatten | nn.Unflatten) or "dropout" in home
        return passes or not is_plain(module)
    if node.op == "call_method":
        return node.target not in FRESH_METHODS
    if node.target in FRESH_OPERATORS:
        return False
    home, name = getattr(node.target, "__module__", ""), getattr(node.target, "__name__", "")
    functional = home == "torch.nn.functional" or "conv" in name or "_norm" in name
    return not functional or any(part in name for part in ALIASING_FUNCTIONS)


def changed_arguments(node: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """The nodes whose memory this one changes in place, or may change."""
    out = _nodes_in(node.kwargs.get("out"))
    if out:
        return out
    first: Any = node.args[0] if node.args else node.kwargs.get("input")
    if node.op == "call_module":
        module = modules[str(node.target)]
        if not is_plain(module):
            return list(node.all_input_nodes)
        inactive = "dropout" in type(module).__module__
        changes = bool(getattr(module, "inplace", False)) and not inactive
    elif node.op == "call_method":
        name = str(node.target)
        changes = name.endswith("_") and not name.endswith("__")
    elif node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        changes = node.target in IN_PLACE_OPERATORS or (
            name.endswith("_") and not name.endswith("__")
        )
        position = _inplace_position(node.target)
        if position is not None and "dropout" not in name:
            given = node.kwargs.get("inplace", False)
            changes |= bool(node.args[position] if len(node.args) > position else given)
    else:
        return []
    return _nodes_in(first) if changes else []


def is_its_argument(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node that changes its argument also is that argument, for certain."""
    if node.op == "call_module" and not is_plain(modules[str(node.target)]):
        return False
    given = node.kwargs.get("out", node.args[0] if node.args else node.kwargs.get("input"))
    return isinstance(given, fx.Node)


def _nodes_in(value: Any) -> list[fx.Node]:
    """The nodes in an argument: one, or those of a list."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


@cache
def _inplace_position(function: Any) -> int | None:
    if getattr(function, "__module__", "") != "torch.nn.functional":
        return None
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None
