"""From recorded calls to the graph: each fx node becomes a value, a constant or metadata."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from repfuse.arrays import Array
from repfuse.cost import out_area
from repfuse.frontends.torch import layers
from repfuse.frontends.torch.calls import Call, Trace, Traces, calls_of, has_hooks
from repfuse.frontends.torch.constants import Constants
from repfuse.frontends.torch.copies import tensors_by_path
from repfuse.frontends.torch.entries import CONSTANT, METADATA, Compound, Constant, Entry, Metadata
from repfuse.frontends.torch.facts import (
    collect_facts,
    is_uninitialised,
    keeps_shape,
    shrinks,
)
from repfuse.frontends.torch.functions import recognise
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.memory import Memory, changed_argument, changed_tensors, may_alias
from repfuse.frontends.torch.shuffles import shuffle
from repfuse.graph import Concat, Graph, Node, Opaque, Producer, Sum, Value
from repfuse.operators import Affine, Conv, Operator, Pad, Pool, Select

__all__ = ["lower"]


NOMINAL_AREA = {0: 196.0, 1: 16384.0, 2: 224.0**2, 3: 16 * 112.0**2}
METADATA_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"}
METADATA_METHODS = {"size", "dim", "numel", "is_floating_point", "stride", "type", "is_contiguous"}


def lower(model: nn.Module, traces: Traces) -> Lowered:
    """The graph of everything that was traced."""
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = {**traces.constants, **tensors_by_path(modules)}
    for path, module in modules.items():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                tensors.setdefault(f"{path}.{name}".lstrip("."), value)
    lowered = Lowered(Graph(), traces, modules, Constants(tensors))
    for trace in traces.traces:
        lowered.constants.exclude(changed_tensors(trace.graph, modules, tensors))
    for trace in traces.traces:
        _Lowering(lowered, trace).run()
    return lowered


class _Lowering:
    """Walks one trace in the order of execution."""

    def __init__(self, lowered: Lowered, trace: Trace) -> None:
        self.to = lowered
        self.graph = lowered.graph
        self.constants = lowered.constants
        self.trace = trace
        self.entries: dict[fx.Node, Entry] = {}
        self.memory = Memory()
        self.dtypes: dict[Value, torch.dtype] = {}
        self.facts = collect_facts(trace.graph, lowered.modules, lowered.constants)

    def run(self) -> None:
        ends: dict[fx.Node, list[Call]] = {}
        for call in calls_of(self.trace.call):
            last = call.items[-1] if call.items else None
            while isinstance(last, Call):
                last = last.items[-1]
            if last is not None:
                ends.setdefault(last, []).append(call)
        for node in self.trace.graph.nodes:
            self.to.order[node] = len(self.to.order)
            self.to.nodes.append(node)
            if node.op == "output":
                self._output(node)
                continue
            self.memory.own(node)
            try:
                entry = self._lower(node)
            except Exception as error:  # what is not understood stays as it is
                self.to.errors.append(f"{self.label(node)} is not read: {error!r}")
                entry = self.opaque(node)
            self.entries[node] = entry
            if not isinstance(entry, Constant | Metadata):
                self.to.value_of[node] = entry.whole if isinstance(entry, Compound) else entry
                self._learn(node, self.to.value_of[node])
            for call in ends.get(node, ()):
                self._close(call)
        self._close(self.trace.call)
        self._pin_methods(self.trace.call)
        for name, nodes in self.trace.kept.items():
            self._pin_kept(name, nodes)
        for node in self.trace.graph.nodes:
            self.to.storage[node] = self.memory.storage(node)

    def _close(self, call: Call) -> None:
        """Keep what the names that the call returns mean when it returns."""
        found = self.to.results.setdefault(call, {})
        for node in _leaves(call.result):
            entry = self.entries.get(node)
            if isinstance(entry, Compound):
                found[node] = entry.whole
            elif isinstance(entry, int):
                found[node] = entry

    # Reading.

    def value(self, node: fx.Node, reader: fx.Node) -> Value | None:
        """The value that the name has now; None for constants and metadata."""
        entry = self.entries.get(node)
        if entry is None or isinstance(entry, Constant | Metadata):
            return None
        found = entry.whole if isinstance(entry, Compound) else entry
        self.to.reads.setdefault(reader, {})[node] = found
        return found

    def known(self, value: Value) -> tuple[int, int] | None:
        node = self.graph.nodes[value]
        return None if node.channels is None or node.rank is None else (node.channels, node.rank)

    def label(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        path = node.meta["call"].path if "call" in node.meta else ""
        return f"{path}.{node.name}".lstrip(".")

    # Writing.

    def make(self, node: fx.Node, producer: Producer, operands: tuple[Value, ...]) -> Value:
        """A new value for the node."""
        first = self.graph.nodes[operands[0]] if operands else None
        made = Node(producer, self.label(node))
        if isinstance(producer, Conv | Affine | Pool | Pad | Select):
            made.channels, made.rank = producer.out_channels, producer.rank
        elif isinstance(producer, Sum | Concat):
            made.channels, made.rank = self._joined(producer, operands)
        elif first is not None and keeps_shape(node, self.to.modules, first.rank):
            made.channels, made.rank = first.channels, first.rank
        made.area = out_area(producer, first.area) if first else NOMINAL_AREA[2]
        if isinstance(producer, Opaque):
            made.area *= shrinks(node, self.to.modules, made.area)
        value = self.graph.add(made, operands)
        self.to.node_of[value] = node
        known = None if isinstance(producer, Opaque) else self._dtype(node, operands)
        if known is not None:
            self.dtypes[value] = known
        return value

    def _joined(
        self, producer: Producer, operands: tuple[Value, ...]
    ) -> tuple[int | None, int | None]:
        facts = [self.known(operand) for operand in operands]
        present = [fact for fact in facts if fact is not None]
        if not present or len({rank for _, rank in present}) > 1:
            return None, None
        if isinstance(producer, Concat):
            total = sum(channels for channels, _ in present)
            return (total, present[0][1]) if len(present) == len(facts) else (None, None)
        widest = max(channels for channels, _ in present)
        certain = len(present) == len(facts) or widest > 1
        return (widest, present[0][1]) if certain else (None, None)

    def _learn(self, node: fx.Node, value: Value) -> None:
        """Facts that readers of the node tell of it: a conv knows its input's channels."""
        fact, made = self.facts.get(node), self.graph.nodes[value]
        if fact is not None and made.channels is None:
            made.channels, made.rank = fact.channels, fact.rank
            if node.op == "placeholder":
                made.area = NOMINAL_AREA.get(fact.rank, made.area)

    def opaque(self, node: fx.Node, reason: str | None = None) -> Value:
        """A value that no pass looks into; it reads all that its node reads."""
        operands = tuple(
            value
            for source in node.all_input_nodes
            if (value := self.value(source, node)) is not None
        )
        value = self.make(node, Opaque(reason or _kind(node, self.to.modules)), operands)
        changed = changed_argument(node, self.to.modules)
        if changed is not None and not isinstance(self.entries.get(changed), Constant | Metadata):
            self._change(node, changed, value)
        elif may_alias(node, self.to.modules):
            sources = [source for source in node.all_input_nodes if source in self.to.value_of]
            self.memory.share(node, sources)
        return value

    def _change(self, node: fx.Node, changed: fx.Node, value: Value) -> None:
        """All names of the changed memory mean something else from here on."""
        before = self.entries[changed]
        self.to.changes.append((self.to.order[node], changed))
        for name in list(self.memory.names(changed)):
            entry = self.entries.get(name)
            if entry is None or isinstance(entry, Constant | Metadata):
                continue
            if entry == before:
                self.entries[name] = value
            else:
                old = entry.whole if isinstance(entry, Compound) else entry
                view = Node(Opaque("a view of memory that is changed in place"), self.label(name))
                self.entries[name] = self.graph.add(view, (old, value))
        self.memory.share(node, [changed])

    def _output(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            value = self.value(source, node)
            if value is not None:
                self.graph.pin(value, "it is an output of the model")

    def _pin_kept(self, name: str, nodes: list[fx.Node]) -> None:
        for node in nodes:
            entry = self.entries.get(node)
            if entry is not None and not isinstance(entry, Constant | Metadata):
                value = entry.whole if isinstance(entry, Compound) else entry
                where = f"in the attribute {name!r}" if name.isidentifier() else name
                self.graph.pin(value, f"forward keeps it {where}")

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
            changed = self.constants.tensor(node) is not None
            reason = "a parameter that is changed in place"
            return self.make(node, Opaque(reason), ()) if changed else METADATA
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
        if isinstance(module, nn.Identity) or type(module).__module__ == nn.Dropout.__module__:
            return self.alias(node, source, value)
        if isinstance(module, nn.ChannelShuffle) and not has_hooks(module):
            entry = shuffle(self, node, value, module.groups)
            return self.opaque(node) if entry is None else entry
        if is_uninitialised(module):
            return self.opaque(node, f"{type(module).__name__}, which is not initialised yet")
        if has_hooks(module):
            return self.opaque(node, f"{type(module).__name__} with hooks")
        if any(self.constants.is_changed(tensor) for tensor in module.parameters()):
            return self.opaque(node, f"{type(module).__name__} whose weights change in place")
        failure = self.to.traces.failures.get(str(node.target))
        if failure is not None:
            return self.opaque(node, f"{type(module).__name__}, which cannot be traced")
        if type(module).forward is not _original_forward(type(module)):
            return self.opaque(node)
        fact, known = self.facts.get(source), self.known(value)
        rank = fact.norm_rank if fact else None
        producer = layers.layer(module, rank if rank is not None or not known else None)
        if isinstance(module, nn.BatchNorm1d | nn.SyncBatchNorm) and known and known[1] > 0:
            producer = layers.layer(module, known[1])
        if producer is None:
            return self.opaque(node)
        computed = isinstance(producer, Conv) and any(
            name not in module._parameters for name in ("weight", "bias")
        )
        return self.apply(node, producer, value, computed)

    # Entries that recognised operations make.

    def taken_apart(self, node: fx.Node, operands: tuple[Value, ...]) -> Value:
        """The value of a node that others are expected to read in pieces only."""
        whole = self.make(node, Opaque(_kind(node, self.to.modules)), operands)
        self.graph.nodes[whole].inner = True
        return whole

    def apply(
        self, node: fx.Node, producer: Operator | Opaque, value: Value, computed: bool = False
    ) -> Entry:
        """The producer on a value; a pooling or a border learns its channels here."""
        if isinstance(producer, Opaque):
            return self.opaque(node, producer.reason)
        known = self.known(value)
        if isinstance(producer, Pad) and known and known[1] > producer.rank:
            missing = ((0, 0),) * (known[1] - producer.rank)
            producer = replace(producer, padding=(*missing, *producer.padding))
        if isinstance(producer, Pool | Pad):
            if known is None or known[1] != producer.rank:
                return self.opaque(node)
            producer = replace(producer, channels=known[0])
        if known is None:
            channels = self.graph.nodes[value]
            channels.channels, channels.rank = producer.in_channels, producer.rank
        elif known != (producer.in_channels, producer.rank):
            return self.opaque(node)
        made = self.make(node, producer, (value,))
        self.graph.nodes[made].computed = computed
        return made

    def alias(self, node: fx.Node, source: fx.Node, value: Value, fresh: bool = False) -> Entry:
        """Another name for the value; fresh where it lies in memory of its own."""
        if not fresh:
            self.memory.share(node, [source])
        return value

    def affine(self, node: fx.Node, value: Value, scale: Any, shift: Any) -> Value | None:
        """scale * value + shift, by numbers or arrays of shape (channels,)."""
        known = self.known(value)
        if known is None:
            return None
        arrays = [
            part if isinstance(part, Array) else Array.full((known[0],), part)
            for part in (scale, shift)
        ]
        return self.make(node, Affine(arrays[0], arrays[1], known[1]), (value,))

    def widens(self, value: Value, constant: fx.Node, array: Array) -> bool:
        """Whether arithmetic with the constant gives the value a wider dtype than it had."""
        before, kind = self.dtypes.get(value), self.constants.dtype(constant)
        if before is None or kind is None or not array.shape:
            return False
        return torch.promote_types(before, kind) != before

    def _dtype(self, node: fx.Node, operands: tuple[Value, ...]) -> torch.dtype | None:
        """The dtype of a result, where a weight tells it or the operand's is known."""
        weight: Any = None
        if node.op == "call_module":
            weight = self.to.modules[str(node.target)]._parameters.get("weight")
        elif len(node.args) > 1 and isinstance(node.args[1], fx.Node):
            weight = self.constants.tensor(node.args[1])
        if weight is not None and weight.dim() > 1:
            return weight.dtype  # type: ignore[no-any-return]
        return self.dtypes.get(operands[0]) if operands else None

    def changed_in_place(self, node: fx.Node, value: Value) -> Value:
        """Record that the node also changed the memory of its first argument."""
        changed = changed_argument(node, self.to.modules)
        if changed is not None:
            self._change(node, changed, value)
        return value


def is_entry_point(call: Call) -> bool:
    """Whether users call the method by itself: the root's public ones, and all forward_*."""
    if call.method == "forward" or call.method.startswith("_"):
        return False
    return call.path == "" or call.method.startswith("forward_")


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


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    if node.target is operator.getitem:
        return "indexing"
    return str(getattr(node.target, "__name__", node.target)).strip("_")
