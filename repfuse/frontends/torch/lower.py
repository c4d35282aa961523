"""From recorded calls to the graph: each fx node becomes a value, a constant or metadata."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import fx, nn

from repfuse.areas import Shapes
from repfuse.frontends.torch import layers, norms
from repfuse.frontends.torch.calls import (
    Call,
    Trace,
    Traces,
    calls_of,
    has_hooks,
    is_entry_point,
    is_plain,
)
from repfuse.frontends.torch.constants import Constants
from repfuse.frontends.torch.copies import tensors_by_path
from repfuse.frontends.torch.entries import (
    CONSTANT,
    METADATA,
    Compound,
    Constant,
    Entry,
    Metadata,
    whole,
)
from repfuse.frontends.torch.exposure import (
    exclude_exposed,
    may_be_called_alone,
    pin_loose,
)
from repfuse.frontends.torch.facts import is_uninitialised
from repfuse.frontends.torch.functions import recognise
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.lowering import Lowering
from repfuse.frontends.torch.memory import changed_tensors
from repfuse.frontends.torch.moves import pull, show
from repfuse.frontends.torch.shuffles import shuffle
from repfuse.frontends.torch.snapshot import held_by
from repfuse.frontends.torch.ties import find_ties
from repfuse.graph import ARGUMENT, Graph, Opaque, Value
from repfuse.operators import Conv

__all__ = ["lower"]

METADATA_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"}
METADATA_METHODS = {"size", "dim", "numel", "is_floating_point", "stride", "type", "is_contiguous"}


def lower(model: nn.Module, traces: Traces, shapes: Shapes = ()) -> Lowered:
    """The graph of everything that was traced. shapes: those of the inputs, for the cost model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = {**traces.constants, **tensors_by_path(modules)}
    for path, module in modules.items():
        for name, value in held_by(module):
            if isinstance(value, torch.Tensor):
                tensors.setdefault(f"{path}.{name}".lstrip("."), value)
    lowered = Lowered(Graph(), traces, modules, Constants(tensors), shapes=shapes)
    lowered.ties = find_ties(modules, traces.traces, tensors, lowered.place_in_call)
    for trace in traces.traces:
        lowered.constants.exclude(changed_tensors(trace.graph, modules, tensors))
    exclude_exposed(lowered)
    for trace in traces.traces:
        _Walk(lowered, trace).run()
    return lowered


class _Walk(Lowering):
    """Walks one trace in the order of execution."""

    def __init__(self, lowered: Lowered, trace: Trace) -> None:
        super().__init__(lowered, trace)
        self.outside: dict[Call, dict[fx.Node, tuple[Entry, Value]]] = {}

    def run(self) -> None:
        begins: dict[fx.Node, list[Call]] = {}
        ends: dict[fx.Node, list[Call]] = {}
        for call in calls_of(self.trace.call):
            if not call.items:
                continue
            if call.parent is not None:
                begins.setdefault(_outermost(call, 0), []).append(call)
            ends.setdefault(_outermost(call, -1), []).append(call)
        for node in self.trace.graph.nodes:
            for call in begins.get(node, ()):
                self._open(call)
            self.to.order[node] = len(self.to.order)
            self.to.nodes.append(node)
            if node.op == "output":
                self._output(node)
                continue
            self.memory.own(node)
            try:
                entry = self._lower(node)
                entry = pull(self, node, entry) if isinstance(entry, int) else entry
            except Exception as error:  # what is not understood stays as it is
                self.to.errors.append(f"{self.label(node)} is not read: {error!r}")
                entry = self.opaque(node)
            self.entries[node] = entry
            if not isinstance(entry, Constant | Metadata):
                self.to.value_of[node] = whole(entry)
                self._learn(node, self.to.value_of[node])
            for call in reversed(ends.get(node, [])):  # the inner ones first
                self._close(call)
        self._close(self.trace.call)
        self._pin_methods(self.trace.call)
        pin_loose(self.to, self.trace.call)
        for name, nodes in self.trace.kept.items():
            self._pin_kept(name, nodes)
        show(self)
        for node in self.trace.graph.nodes:
            self.to.storage[node] = self.memory.storage(node)
            if node in self.to.layouts and not node.users:
                self.graph.ends.add(self.to.layouts[node][0])

    def _open(self, call: Call) -> None:
        """Keep what the arguments mean. Where the call may be made alone, nothing in it is computed
        from beyond them: they may be others next time."""
        given = self.to.given[call] = {}
        for name in _leaves((call.args, call.kwargs)):
            entry = self.entries.get(name)
            if isinstance(entry, Compound | int):
                given[name] = whole(entry)
        if not may_be_called_alone(self.to.traces, call):
            return
        before: dict[fx.Node, tuple[Entry, Value]] = {}
        for name in given:
            entry = self.entries[name]
            argument = self.renamed(name, entry, ARGUMENT)
            self._learn(name, argument)
            before[name] = entry, argument
            self.entries[name] = argument
        self.outside[call] = before

    def _close(self, call: Call) -> None:
        """Keep what the names that the call returns mean when it returns."""
        for name, (before, argument) in self.outside.pop(call, {}).items():
            if self.entries[name] == argument:  # nobody changed it inside
                self.entries[name] = before
        found = self.to.results.setdefault(call, {})
        for node in _leaves(call.result):
            entry = self.entries.get(node)
            if isinstance(entry, Compound | int):
                found[node] = whole(entry)

    def _output(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            value = self.value(source, node)
            if value is not None:
                self.graph.pin(value, "it is an output of the model")

    def _pin_kept(self, name: str, nodes: list[fx.Node]) -> None:
        for node in nodes:
            entry = self.entries.get(node)
            if entry is not None and not isinstance(entry, Constant | Metadata):
                value = whole(entry)
                where = f"forward keeps it in the attribute {name!r}"
                self.graph.pin(value, where if name.isidentifier() else f"forward keeps it {name}")

    def _pin_methods(self, call: Call) -> None:
        """What goes in and out of a public method must exist: users call it by itself."""
        for item in call.items:
            if not isinstance(item, Call):
                continue
            if is_entry_point(item):
                reason = f"it passes through {item.method}, which can be called by itself"
                passed = fx.node.map_arg((item.args, item.kwargs, item.result), lambda n: n)
                for source in _leaves(passed):
                    if source in self.to.value_of:
                        self.graph.pin(self.to.value_of[source], reason)
            self._pin_methods(item)

    # Recognition.

    def _lower(self, node: fx.Node) -> Entry:
        if node.op == "placeholder":
            return self.make(node, Opaque("input"), ())
        if self.constants.is_constant(node):
            return CONSTANT
        if node.op == "get_attr":
            tensor = self.constants.tensor(node)
            if tensor is None:
                return METADATA
            excluded = self.constants.why_excluded([tensor])
            return self.make(node, Opaque(f"parameters whose values {excluded}"), ())
        if node.meta.get("mode"):
            return self.opaque(node, "an operation under autocast or its own grad mode")
        if self._is_metadata(node):
            for source in node.all_input_nodes:
                self.value(source, node)
            return METADATA
        if node.op == "call_module":
            return self._module(node)
        entry = recognise(self, node)
        return self.opaque(node) if entry is None else entry

    def _is_metadata(self, node: fx.Node) -> bool:
        entries = [self.entries.get(source) for source in node.all_input_nodes]
        if not entries:
            return node.op == "call_function"
        if all(isinstance(entry, Metadata) for entry in entries):
            return True
        if node.op == "call_function" and node.target is getattr:
            return node.args[1] in METADATA_ATTRIBUTES
        return node.op == "call_method" and node.target in METADATA_METHODS

    def _module(self, node: fx.Node) -> Entry:
        module = self.to.modules[str(node.target)]
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        value = self.value(source, node) if isinstance(source, fx.Node) else None
        if value is None or not isinstance(source, fx.Node):
            return self.opaque(node)
        if isinstance(module, torch.jit.ScriptModule):
            return self.opaque(node, "a TorchScript module")
        plain = is_plain(module)
        drops = type(module).__module__ == nn.Dropout.__module__
        if module.training:  # also after eval(), which some classes have of their own
            if drops:
                return self.opaque(node, "a dropout that may be active")
            if isinstance(module, nn.modules.batchnorm._NormBase):
                return self.opaque(node, "a batch norm on the statistics of the batch")
        if plain and (drops or isinstance(module, nn.Identity)):
            return self.alias(node, source, value)
        if plain and isinstance(module, nn.ChannelShuffle):
            entry = shuffle(self, node, value, module.groups)
            return self.opaque(node) if entry is None else entry
        if is_uninitialised(module):
            return self.opaque(node, f"{type(module).__name__}, which is not initialised yet")
        if has_hooks(module):
            return self.opaque(node, f"{type(module).__name__} with hooks")
        excluded = self.constants.why_excluded(chain(module.parameters(), module.buffers()))
        if excluded is not None:
            return self.opaque(node, f"{type(module).__name__} whose weights {excluded}")
        failure = self.to.traces.failures.get(str(node.target))
        if failure is not None:
            return self.opaque(node, f"{type(module).__name__}, which cannot be traced")
        if type(module).forward is not _original_forward(type(module)):
            return self.opaque(node)
        norm = norms.norm_layer(self, node, value)
        if norm is not None:
            return norm
        fact, known = self.facts.get(source), self.known(value)
        rank = fact.norm_rank if fact else None
        rank = 0 if rank is None and self.axes(value) == 2 else rank
        producer = layers.layer(module, rank if rank is not None or not known else None)
        if isinstance(module, nn.BatchNorm1d | nn.SyncBatchNorm) and known and known[1] > 0:
            producer = layers.layer(module, known[1])
        if producer is None:
            return self.opaque(node)
        computed = isinstance(producer, Conv) and any(
            name not in module._parameters for name in ("weight", "bias")
        )
        return self.apply(node, producer, value, computed)


def _outermost(call: Call, end: int) -> fx.Node:
    """The first node of a call (end 0), or the last (-1)."""
    item = call.items[end]
    while isinstance(item, Call):
        item = item.items[end]
    return item


def _original_forward(kind: type) -> Callable[..., Any]:
    """The forward of the torch layer that a class derives from."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules"):
            return base.forward  # type: ignore[attr-defined, no-any-return]
    return kind.forward  # type: ignore[attr-defined, no-any-return]


def _leaves(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, lambda node: found.append(node))
    return found
