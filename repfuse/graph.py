"""The graph that the compiler works on: values, and what produces each of them.

A node of the `networkx.MultiDiGraph` is a value, an edge runs from an operand to the value
that reads it, keyed by the operand slot (a plain DiGraph cannot hold `x + x`).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import TypeAlias

import networkx as nx

from repfuse.operators import Affine, Conv, Gate, Mixed, Operator, Pad, Pool, Select, SlicedConv

__all__ = ["ARGUMENT", "Concat", "Gated", "Graph", "Node", "Opaque", "Producer", "Sum", "Value"]

Value: TypeAlias = int

REACH = 256


@dataclass(frozen=True)
class Sum:
    """The sum of all operands, which have the same shape."""


@dataclass(frozen=True)
class Concat:
    """The operands side by side along the channels."""


@dataclass(frozen=True)
class Gated:
    """The first operand times a factor of its sample, which the second one holds."""

    gate: Gate


@dataclass(frozen=True)
class Opaque:
    """Anything that no pass looks into; `reason` says what it is.

    nature: "product" where its operands are multiplied with each other, "in place" where it
    changes its first operand.
    """

    reason: str
    nature: str = ""


# What a method was given that others may call with something else.
ARGUMENT = Opaque("argument")

Producer: TypeAlias = Operator | Sum | Concat | Gated | Opaque


@dataclass
class Node:
    """What is known of one value.

    channels and rank (number of spatial axes) are None where they are not known; area is the
    estimated number of positions, for the cost model. An inner value is a part of
    a framework's operation (the -y of x - y) and costs nothing of its own. A value within
    another operation (the scale and shift of a norm) is made in the same pass over memory as its
    operand, which only exists by itself where nobody reads the value. A tied one has a weight that
    is used elsewhere as well. apart: of what a norm makes, whether a Linear on
    it adds its bias in a pass of its own. factor: (operand, gate) of an opaque product that is
    linear in the operand, or why none of its operands is a factor of the sample; see
    `Graph.opened`.
    """

    producer: Producer
    label: str
    channels: int | None = None
    rank: int | None = None
    area: float = 0.0
    inner: bool = False
    computed: bool = False
    within: bool = False
    tied: bool = False
    apart: bool = False
    factor: tuple[Value, Gate] | str | None = None


class Graph:
    """Values in topological order of their creation."""

    def __init__(self) -> None:
        self.dag: nx.MultiDiGraph[Value] = nx.MultiDiGraph()
        self.nodes: dict[Value, Node] = {}
        self.pinned: dict[Value, str] = {}
        self.ends: set[Value] = set()  # what code moves axes of, and then does nothing with
        self._operands: dict[Value, tuple[Value, ...]] = {}

    def add(self, node: Node, operands: tuple[Value, ...] = ()) -> Value:
        value = len(self.nodes)
        self.nodes[value] = node
        self._operands[value] = operands
        self.dag.add_node(value)
        for slot, operand in enumerate(operands):
            self.dag.add_edge(operand, value, key=slot)
        return value

    def reroot(self, value: Value, producer: Producer, operands: tuple[Value, ...]) -> None:
        """The value is made by another producer of other operands."""
        self.dag.remove_edges_from(list(self.dag.in_edges(value, keys=True)))
        self.nodes[value].producer = producer
        self._operands[value] = operands
        for slot, operand in enumerate(operands):
            self.dag.add_edge(operand, value, key=slot)

    def pin(self, value: Value, reason: str) -> None:
        """The value must survive, because `reason`."""
        self.pinned.setdefault(value, reason)

    def operands(self, value: Value) -> tuple[Value, ...]:
        return self._operands[value]

    def readers(self, value: Value) -> list[Value]:
        return list(self.dag.successors(value))

    def opened(self) -> Graph:
        """The same graph, in which products with factors of the sample are looked into."""
        graph = copy(self)
        graph.nodes, graph._operands = dict(self.nodes), dict(self._operands)
        for value, node in self.nodes.items():
            if isinstance(node.factor, tuple):
                operand, gate = node.factor
                graph.nodes[value] = replace(node, producer=Gated(gate))
                graph._operands[value] = (operand, gate.value)
            elif node.factor is not None and self._is_summed(value):
                graph.nodes[value] = replace(node, producer=Opaque(node.factor))
        return graph

    def _is_summed(self, value: Value) -> bool:
        return any(isinstance(self.nodes[reader].producer, Sum) for reader in self.readers(value))

    def is_linear(self, value: Value) -> bool:
        return not isinstance(self.nodes[value].producer, Opaque)

    def above(self, value: Value, first: Value) -> set[Value] | None:
        """The value and those from `first` on that it is computed from; None where these are more
        than `REACH`."""
        found, todo = set[Value](), [value]
        while todo:
            current = todo.pop()
            if current >= first and current not in found:
                found.add(current)
                todo += self._operands[current]
                if len(found) > REACH:
                    return None
        return found

    def is_only_taken_apart(self, value: Value) -> bool:
        """Whether nothing reads the value as a whole: its pieces are values of their own."""
        inner = self.nodes[value].inner and value not in self.pinned
        return inner and not self.dag.out_degree(value)

    def anchors(self) -> set[Value]:
        """The values that must exist: what opaque nodes read, what is pinned, and dead ends."""
        found = {*self.pinned, *self.ends}
        for value, node in self.nodes.items():
            if self.is_only_taken_apart(value):
                continue
            if isinstance(node.producer, Opaque):
                found.update(self._operands[value])
            elif isinstance(node.producer, Gated):
                gate = node.producer.gate
                found.update({gate.value} if gate.base is None else {gate.value, gate.base})
            elif not self.dag.out_degree(value):
                found.add(value)
        return found

    def describe(self, value: Value) -> str:
        """A short text of what produces the value: "Conv 3x3", "BatchNorm", "sum"."""
        if self.nodes[value].within:
            (value,) = self._operands[value]
        return describe(self.nodes[value].producer)


def describe(producer: Producer) -> str:
    if isinstance(producer, Conv):
        if not producer.rank:
            return f"Linear {producer.in_channels}->{producer.out_channels}"
        size = "x".join(map(str, producer.kernel_size))
        stride = "" if set(producer.stride) == {1} else f" s{'x'.join(map(str, producer.stride))}"
        groups = "" if producer.groups == 1 else f" g{producer.groups}"
        if producer.groups == producer.in_channels == producer.out_channels > 1:
            groups = " depthwise"
        name = "ConvTranspose" if producer.transposed else "Conv"
        return f"{name} {size}{stride}{groups} {producer.in_channels}->{producer.out_channels}"
    if isinstance(producer, Affine):
        return "skip" if producer.is_identity else f"Affine {producer.in_channels}"
    if isinstance(producer, Pool):
        return f"AvgPool {'x'.join(map(str, producer.kernel_size))}"
    if isinstance(producer, Pad):
        return f"pad by {producer.padding}"
    if isinstance(producer, Select):
        count, width = producer.out_channels, producer.in_channels
        shuffles = sorted(producer.indices) == list(range(width))
        return f"shuffle of {width}" if shuffles else f"Select {count} of {width}"
    if isinstance(producer, SlicedConv):
        return f"{describe(producer.conv)} of {producer.in_channels}"
    if isinstance(producer, Mixed):
        return f"{describe(producer.together)} with a kernel mixed of {len(producer.terms)}"
    if isinstance(producer, Gated):
        return "product with a factor of the sample"
    return type(producer).__name__.lower() if not isinstance(producer, Opaque) else producer.reason
