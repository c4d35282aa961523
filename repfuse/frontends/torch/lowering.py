"""What recognisers work with: the values of a trace so far, and how to add one."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from repfuse.areas import NOMINAL_AREA, input_area
from repfuse.arrays import Array
from repfuse.cost import out_area
from repfuse.frontends.torch.calls import Trace
from repfuse.frontends.torch.entries import Constant, Entry, Metadata, whole
from repfuse.frontends.torch.facts import (
    collect_facts,
    keeps_shape,
    shrinks,
)
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.memory import (
    Memory,
    changed_arguments,
    is_its_argument,
    may_alias,
)
from repfuse.graph import Concat, Node, Opaque, Producer, Sum, Value
from repfuse.operators import Affine, Conv, Operator, Pad, Pool, Select

__all__ = ["Lowering", "kind_of"]

VIEW = Opaque("a view of memory that is changed in place")
UNCERTAIN = Opaque("memory that may be changed in place")


class Lowering:
    """The state of one trace that is being read: what each node is, and the graph that grows."""

    def __init__(self, lowered: Lowered, trace: Trace) -> None:
        self.to = lowered
        self.graph = lowered.graph
        self.constants = lowered.constants
        self.trace = trace
        self.entries: dict[fx.Node, Entry] = {}
        self.memory = Memory()
        self.dtypes: dict[Value, torch.dtype] = {}
        self.fillings: dict[Value, Any] = {}
        self.facts = collect_facts(trace.graph, lowered.modules, lowered.constants)

    # Reading.

    def value(self, node: fx.Node, reader: fx.Node) -> Value | None:
        """The value that the name has now; None for constants and metadata."""
        entry = self.entries.get(node)
        if entry is None or isinstance(entry, Constant | Metadata):
            return None
        found = whole(entry)
        self.to.reads.setdefault(reader, {})[node] = found
        return found

    def known(self, value: Value) -> tuple[int, int] | None:
        node = self.graph.nodes[value]
        return None if node.channels is None or node.rank is None else (node.channels, node.rank)

    def axes(self, value: Value) -> int | None:
        """How many axes a value has; data with spatial axes is batched."""
        known = self.known(value)
        if known is not None and known[1]:
            return known[1] + 2
        if value in self.to.counts:
            return self.to.counts[value]
        fact = self.facts.get(self.to.node_of[value])
        return fact.axes if fact is not None and value not in self.to.rooted else None

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
        if made.rank == 0 and all(self.graph.nodes[operand].rank == 0 for operand in operands):
            counts = [self.axes(operand) for operand in operands]
            known_counts = [count for count in counts if count is not None]
            if known_counts and len(known_counts) == len(counts):
                self.to.counts[value] = max(known_counts)
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
                given = input_area(str(node.target), fact.channels, fact.rank, self.to.shapes)
                self.to.sized.update([str(node.target)] if given else [])
                made.area = given or NOMINAL_AREA.get(fact.rank, made.area)

    def opaque(self, node: fx.Node, reason: str | None = None, nature: str = "") -> Value:
        """A value that no pass looks into; it reads all that its node reads."""
        operands = tuple(
            value
            for source in node.all_input_nodes
            if (value := self.value(source, node)) is not None
        )
        changed = [
            argument
            for argument in changed_arguments(node, self.to.modules)
            if not isinstance(self.entries.get(argument), Constant | Metadata)
        ]
        kind = reason or kind_of(node, self.to.modules)
        producer = Opaque(kind, "in place" if changed and not nature else nature)
        value = self.make(node, producer, operands)
        if changed:
            same = is_its_argument(node, self.to.modules)
            for argument in changed:
                self._change(node, argument, value, same)
            self._share_changed(node, changed, same)
        elif may_alias(node, self.to.modules):
            sources = [source for source in node.all_input_nodes if source in self.to.value_of]
            self.memory.share(node, sources)
        return value

    def _change(self, node: fx.Node, changed: fx.Node, value: Value, same: bool) -> None:
        """All names of the changed memory mean something else from here on.

        same: the tensor that is changed is what the node gives. Otherwise nobody knows what is
        in its memory then: that is a value of its own, and so is every view of changed memory.
        """
        self.to.changes.append((self.to.order[node], changed))
        seen: dict[bool, Value] = {True: value} if same else {}
        for name in list(self.memory.names(changed)):
            entry = self.entries.get(name)
            if entry is None or isinstance(entry, Constant | Metadata):
                continue
            twin = self.memory.are_twins(name, changed)
            if not twin or True not in seen:
                seen[twin] = self.renamed(name, entry, UNCERTAIN if twin else VIEW, value)
            elif name not in self.to.names_of.get(seen[twin], ()):
                self.to.names_of.setdefault(seen[twin], []).append(name)
            if not twin:
                self.to.views.append((node, name, seen[twin]))
            self.entries[name] = seen[twin]

    def renamed(self, name: fx.Node, entry: Entry, producer: Opaque, *others: Value) -> Value:
        """A value of its own for what a name means from here on: what it meant, and others."""
        assert not isinstance(entry, Constant | Metadata)
        old = whole(entry)
        before = self.graph.nodes[old]
        made = Node(producer, self.label(name))
        made.channels, made.rank, made.area = before.channels, before.rank, before.area
        value = self.graph.add(made, (old, *others))
        self.to.node_of[value] = name
        self.to.names_of[value] = [name]
        if old in self.dtypes:
            self.dtypes[value] = self.dtypes[old]
        return value

    def _share_changed(self, node: fx.Node, changed: list[fx.Node], same: bool) -> None:
        """The node lies in the memory that it changes."""
        if same:
            self.memory.alias(node, changed[0])
        else:
            self.memory.share(node, changed)

    # Entries that recognised operations make.

    def taken_apart(self, node: fx.Node, operands: tuple[Value, ...]) -> Value:
        """The value of a node that others are expected to read in pieces only."""
        whole = self.make(node, Opaque(kind_of(node, self.to.modules)), operands)
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
        if isinstance(producer, Pad) and producer.value is not None:
            number = producer.value.constant
            assert number is not None
            producer = replace(producer, value=Array.full((producer.channels,), number))
        if known is None:
            channels = self.graph.nodes[value]
            channels.channels, channels.rank = producer.in_channels, producer.rank
        elif known != (producer.in_channels, producer.rank):
            return self.opaque(node)
        made = self.make(node, producer, (value,))
        self.graph.nodes[made].computed = computed
        self.graph.nodes[made].tied = self.to.ties.has(node)
        return made

    def alias(self, node: fx.Node, source: fx.Node, value: Value, copied: bool = False) -> Entry:
        """Another name for the value; copied: it may lie in memory of its own, or does.

        As long as nobody changes either of them, a copy is what it was copied from.
        """
        if copied:
            self.memory.share(node, [source])
        else:
            self.memory.alias(node, source)
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
        changed = changed_arguments(node, self.to.modules)
        for argument in changed:
            self._change(node, argument, value, same=True)
        if changed:
            self._share_changed(node, changed, same=True)
        return value


def kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    if node.target is operator.getitem:
        return "indexing"
    return str(getattr(node.target, "__name__", node.target)).strip("_")
