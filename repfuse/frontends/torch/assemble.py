"""From edits to patches: what is put where in the model, by path, before any weight is read."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from networkx.utils import UnionFind
from torch import fx, nn

from repfuse.frontends.torch.calls import Call
from repfuse.frontends.torch.edits import Edit, Region, Regions
from repfuse.frontends.torch.emit import Body, Method, is_writable, write_body
from repfuse.frontends.torch.faults import CannotEmit
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.usage import Usage
from repfuse.graph import Value
from repfuse.operators import Conv, Mixed
from repfuse.select import is_skip

__all__ = ["Operation", "Patch", "assemble"]


@dataclass(eq=False)
class Operation:
    """A new layer: its operator, and the parameters whose dtype, device and grad it takes over."""

    conv: Conv | Mixed
    region: Region
    index: int
    like: list[torch.Tensor]


@dataclass
class Patch:
    """Edits that belong together: all of them are written, or none.

    layers: new layers by path. identities: paths of modules that let their input pass.
    bare: paths of norms that lose their weight and bias.
    rests: norms of which only the children named remain. methods: methods written again, by
    path of the module. merged: what a swallowed module was merged into. dropped: (module
    path, name) of parameters that nobody reads any more. repeated: regions of later calls, for
    each of their terms its index and the path of the layer that the first call made.
    """

    regions: list[Region] = field(default_factory=list)
    layers: dict[str, Operation] = field(default_factory=dict)
    identities: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    rests: dict[str, list[str]] = field(default_factory=dict)
    methods: dict[str, tuple[Method, ...]] = field(default_factory=dict)
    merged: dict[str, str] = field(default_factory=dict)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    repeated: list[tuple[Region, int, str]] = field(default_factory=list)


def assemble(lowered: Lowered, found: Regions, plain: Any) -> list[Patch]:
    """The patches for all regions; regions that cannot be written are added to `blocked`."""
    groups = _groups(lowered, found.regions)
    patches, usage = [], Usage.of(lowered, found, groups)
    for group in groups:
        try:
            patches.append(_Assembly(lowered, found, group, plain, usage).patch())
        except CannotEmit as error:
            for region in group:
                found.blocked.append((region, f"the method cannot be written again: {error}"))
    return patches


def _groups(lowered: Lowered, regions: list[Region]) -> list[list[Region]]:
    """Regions that touch the same method, the same layer or the same nodes."""
    joined: UnionFind[Any] = UnionFind(regions)
    for region in regions:
        norms = [lowered.node_of[norm] for norm in region.bare]
        for node in (*region.removed, *norms):
            joined.union(region, node)
            if node.op == "call_module":
                joined.union(region, id(lowered.modules[str(node.target)]))
        for edit in region.edits:
            if edit.call is not None:
                joined.union(region, (id(edit.call.module), edit.call.method))
    groups: dict[Any, list[Region]] = {}
    for region in regions:
        groups.setdefault(joined[region], []).append(region)
    return list(groups.values())


class _Assembly:
    """Collects the edits of one group."""

    def __init__(
        self, lowered: Lowered, found: Regions, group: list[Region], plain: Any, usage: Usage
    ) -> None:
        self.usage = usage
        self.lowered = lowered
        self.found = found
        self.plain = plain
        self.result = Patch(group)
        self.removed = {node for region in group for node in region.removed} - found.edited
        self.region_of = {edit.value: region for region in group for edit in region.edits}

    def patch(self) -> Patch:
        methods: dict[tuple[int, str], dict[Call, dict[Value, Edit]]] = {}
        done: set[int] = set()
        for region in self.result.regions:
            for edit in region.edits:
                if edit.call is not None:
                    key = (id(edit.call.module), edit.call.method)
                    methods.setdefault(key, {}).setdefault(edit.call, {})[edit.value] = edit
                    continue
                module = self.lowered.modules[str(edit.node.target)]
                if id(module) in done:
                    path = self.lowered.traces.paths[id(module)][0]
                    if edit.terms and not edit.passes:
                        self.result.repeated.append((region, 0, path))
                    continue
                done.add(id(module))
                if edit.bares:
                    self.result.bare += self.lowered.traces.paths[id(module)]
                    continue
                operation = None if edit.passes else self._operation(edit, 0)
                for path in self.lowered.traces.paths[id(module)]:
                    if operation is None:
                        self.result.identities.append(path)
                    else:
                        self.result.layers[path] = operation
        for calls in methods.values():
            self._method(calls)
        for path in self.result.layers.keys() & self.result.merged.keys():
            del self.result.merged[path]  # one method's branch, and another's new layer
        return self.result

    def _operation(self, edit: Edit, index: int) -> Operation:
        conv = self.plain(edit.terms[index].operator)
        assert isinstance(conv, Conv | Mixed)
        region = self.region_of[edit.value]
        return Operation(conv, region, index, _parameters(self.lowered, region))

    def _method(self, calls: dict[Call, dict[Value, Edit]]) -> None:
        """One method of one module, with a body for each argument pattern it was called with."""
        first = next(iter(calls))
        gone = self._gone_children(first)
        bodies: dict[Any, Body] = {}
        names: dict[int, str] = {}
        graph: fx.Graph | None = None
        for call, edits in calls.items():
            terms = self._new_terms(edits)
            if not names:
                names = self._names(first, terms, gone)
            if len(terms) != len(names):
                raise CannotEmit("its calls have different numbers of merged branches")
            own = {(edit.value, index): names[rank] for rank, (edit, index) in enumerate(terms)}
            for rank, (edit, index) in enumerate(terms if call is not first else ()):
                path = f"{first.path}.{names[rank]}".lstrip(".")
                self.result.repeated.append((self.region_of[edit.value], index, path))
            body, graph = write_body(self.lowered, call, edits, self.removed, own, self.usage)
            known = bodies.setdefault((body.given, body.tests), body)
            if not known.does_as(body):
                raise CannotEmit("it does different things for the same kind of arguments")
        dropped = self._dead_tensors(list(calls))
        if any(call.kwargs or len(call.args) > 1 for call in calls):
            graph = None  # no layer of torch takes more than one argument, or its name
        self._place(first, calls[first], names, tuple(bodies.values()), graph, gone, dropped)

    def _new_terms(self, edits: dict[Value, Edit]) -> list[tuple[Edit, int]]:
        """The terms that get a layer, in the order of execution: their edit and their place."""
        ordered = sorted(edits.values(), key=lambda edit: self.lowered.order[edit.node])
        return [
            (edit, index)
            for edit in ordered
            for index, term in enumerate(edit.terms)
            if not is_skip(term)
        ]

    def _names(
        self, call: Call, terms: list[tuple[Edit, int]], gone: dict[str, int]
    ) -> dict[int, str]:
        """Where the new layers live: at the largest swallowed child, else under a new name."""
        prefix, named = f"{call.path}.".lstrip("."), self.usage.named
        free = [path for path in gone if is_writable(path) and prefix + path not in named]
        free.sort(key=lambda path: -gone[path])
        names: dict[int, str] = {}
        for rank, (edit, _) in enumerate(terms):
            mine = [path for path in free if self._inside(call, path, edit)]
            if mine and gone[mine[0]]:
                names[rank] = mine[0]
                free.remove(mine[0])
            else:
                name = f"merged_{rank}" if len(terms) > 1 else "merged"
                while hasattr(call.module, name) or prefix + name in named:
                    name += "_"
                names[rank] = name
            named.add(prefix + names[rank])
        return names

    def _inside(self, call: Call, path: str, edit: Edit) -> bool:
        region = self.region_of[edit.value]
        full = f"{call.path}.{path}".lstrip(".")
        return any(
            _owner(node) == full or _owner(node).startswith(f"{full}.") for node in region.removed
        )

    def _gone_children(self, call: Call) -> dict[str, int]:
        """Relative paths of children that are swallowed whole everywhere, with their weights."""
        swallowed: dict[str, nn.Module] = {}
        for item in _own_items(call):
            if isinstance(item, Call):
                path, nodes = item.path, list(item.nodes())
            elif item.op == "call_module":
                path, nodes = str(item.target), [item]
            else:
                continue
            data = [node for node in nodes if node in self.lowered.value_of]
            if data and all(node in self.removed for node in data):
                swallowed[path] = self.lowered.modules[path]
        result = {}
        for path, module in swallowed.items():
            own = call.path == "" or path.startswith(f"{call.path}.")
            if own and not any(id(part) in self.usage.modules for part in module.modules()):
                relative = path[len(call.path) + 1 :] if call.path else path
                result[relative] = sum(
                    parameter.numel()
                    for parameter in module.parameters()
                    if not nn.parameter.is_lazy(parameter)
                )
        return result

    def _place(
        self,
        call: Call,
        edits: dict[Value, Edit],
        names: dict[int, str],
        bodies: tuple[Body, ...],
        graph: fx.Graph | None,
        gone: dict[str, int],
        dropped: list[str],
    ) -> None:
        rest = None if graph is None else _chain_of_children(graph)
        norm = isinstance(call.module, nn.modules.batchnorm._BatchNorm)
        terms = self._new_terms(edits)
        operations = [self._operation(edit, index) for edit, index in terms]
        into = names.get(0) or _target_of(self.result, call)
        for path in self.lowered.traces.paths[id(call.module)]:
            prefix = f"{path}." if path else ""
            if path and rest == [] and call.method == "forward":
                self.result.identities.append(path)
                continue
            if path and norm and rest is not None and call.method == "forward" and not terms:
                self.result.rests[path] = rest
                continue
            self.result.methods[path] = (
                *self.result.methods.get(path, ()),
                Method(call.method, bodies),
            )
            for rank, operation in enumerate(operations):
                self.result.layers[prefix + names[rank]] = operation
            for child in gone:
                if child not in names.values():
                    self.result.merged[prefix + child] = into
            self.result.dropped += [(path, name) for name in dropped]

    def _dead_tensors(self, calls: list[Call]) -> list[str]:
        """Parameters and buffers of the module that only removed nodes read, in all its calls."""
        read: dict[str, bool] = {}
        for node in self.usage.readers.get(calls[0].path, ()):
            name = str(node.target).rpartition(".")[2]
            # What another method reads, to pass it on, is read again.
            inside = any(call in calls for call in node.meta["call"].chain())
            read[name] = read.get(name, True) and inside and self._is_dead(node)
        module = calls[0].module
        tensors = {**module._parameters, **module._buffers}
        shown = {name for name in read if id(tensors.get(name)) in self.lowered.shown}
        return [name for name, dead in read.items() if dead and name not in shown]

    def _is_dead(self, node: fx.Node) -> bool:
        if self.lowered.value_of.get(node) in self.usage.sources:
            return False  # its own value is a term of a sum that is written
        return bool(node.users) and all(
            user in self.usage.gone
            or (self.lowered.constants.is_constant(user) and self._is_dead(user))
            for user in node.users
        )


def _owner(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else str(node.meta["call"].path)


def _own_items(call: Call) -> Iterator[fx.Node | Call]:
    """The items of a call, and those of the module's other methods that it calls."""
    for item in call.items:
        if isinstance(item, Call) and item.module is call.module:
            yield from _own_items(item)
        else:
            yield item


def _target_of(patch: Patch, call: Call) -> str:
    return next(iter(patch.layers), call.path)


CHECKS = {getattr, torch._assert, operator.eq, operator.ne, operator.getitem, "dim", "size"}


def _chain_of_children(graph: fx.Graph) -> list[str] | None:
    """The children that a body runs one after the other, if that and checks is all it does."""
    path: list[str] = []
    current: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if current is not None:
                return None
            current = node
        elif node.op == "call_module" and node.args == (current,) and not node.kwargs:
            path.append(str(node.target))
            current = node
        elif node.op == "output":
            return path if node.args == (current,) else None
        elif node.target not in CHECKS:
            return None
    return None


def _parameters(lowered: Lowered, region: Region) -> list[torch.Tensor]:
    """The tensors that go into a region, the weights of convs and Linears first, buffers last."""
    weights: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    buffers: list[torch.Tensor] = []

    def note(source: fx.Node) -> None:
        tensor = lowered.constants.tensor(source)
        if tensor is not None:
            (weights if tensor.dim() > 1 else others).append(tensor)
        elif lowered.constants.is_constant(source):
            fx.node.map_arg((source.args, source.kwargs), note)

    for node in region.removed:
        if node.op == "call_module":
            module = lowered.modules[str(node.target)]
            for parameter in module.parameters():
                (weights if parameter.dim() > 1 else others).append(parameter)
            buffers.extend(module.buffers())
        else:
            fx.node.map_arg((node.args, node.kwargs), note)
    own = weights + others + buffers
    floating = [tensor for tensor in own if tensor.is_floating_point()]
    if not floating:  # branches without weights of their own: the model's dtype and device
        every = chain(lowered.modules[""].parameters(), lowered.modules[""].buffers())
        floating = [tensor.detach() for tensor in every if tensor.is_floating_point()][:1]
    return sorted(floating, key=lambda tensor: -tensor.dim()) or [torch.empty(0)]
