"""Weights with several users, layers or places of code: an embedding and the head after it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from repfuse.frontends.torch.calls import Trace

__all__ = ["Ties", "find_ties"]


@dataclass
class Ties:
    """The ids of the parameters that have several users, and the parameters that nodes read."""

    tensors: set[int] = field(default_factory=set)
    used_by: dict[fx.Node, list[int]] = field(default_factory=dict)

    def has(self, node: fx.Node) -> bool:
        """Whether a layer, or a call of a function, uses a parameter that others use as well."""
        return any(tensor in self.tensors for tensor in self.used_by.get(node, ()))


def find_ties(
    modules: dict[str, nn.Module],
    traces: Iterable[Trace],
    tensors: dict[str, torch.Tensor],
    place_in_call: Callable[[fx.Node], int],
) -> Ties:
    """Who uses which parameter: layers that are called theirs, and code.

    The same place in the code of a module is one user, however often it runs.
    """

    def place(node: fx.Node) -> Hashable:
        call = None if node.op == "output" else node.meta.get("call")
        return node if call is None else (id(call.module), call.method, place_in_call(node))

    users: dict[int, set[Hashable]] = {}
    found = Ties()
    for trace in traces:
        for node in trace.graph.nodes:
            if node.op == "call_module":
                parameters = modules[str(node.target)]._parameters.values()
                found.used_by[node] = [id(p) for p in parameters if p is not None]
                for used in found.used_by[node]:
                    users.setdefault(used, set()).add(id(modules[str(node.target)]))
            elif node.op == "get_attr" and str(node.target) in tensors:
                tensor = id(tensors[str(node.target)])
                for reader in _data_readers(node):
                    found.used_by.setdefault(reader, []).append(tensor)
                    users.setdefault(tensor, set()).add(place(reader))
    found.tensors = {tensor for tensor, places in users.items() if len(places) > 1}
    return found


VIEWS = {"t", "transpose", "permute", "swapaxes", "to", "float", "contiguous"}


def _data_readers(node: fx.Node) -> list[fx.Node]:
    """The nodes that read a parameter for its numbers, also through views of it."""
    found, todo = list[fx.Node](), list(node.users)
    while todo:
        reader = todo.pop()
        turned = reader.target is getattr and reader.args[1] in ("T", "mT")
        if turned or getattr(reader.target, "__name__", reader.target) in VIEWS:
            todo += reader.users
        elif reader.target is not getattr and reader.target not in ("size", "dim", "numel"):
            found.append(reader)
    return found
