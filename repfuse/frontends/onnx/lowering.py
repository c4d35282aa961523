"""From the nodes of one ONNX graph to the compiler's graph: the values, and how to add one."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from repfuse.areas import NOMINAL_AREA, Shapes, batch_of, input_area
from repfuse.cost import out_area
from repfuse.frontends.onnx.constants import PURE, Constants
from repfuse.frontends.onnx.scopes import Scope
from repfuse.frontends.onnx.shapes import FLOATS, Type
from repfuse.frontends.onnx.sized import Inferred
from repfuse.graph import Concat, Gated, Graph, Node, Opaque, Producer, Sum, Value
from repfuse.layouts import Layout
from repfuse.operators import Affine, Operator, Pad, Pool

__all__ = ["Lowered", "Lowering", "Metadata", "Move", "NodeView"]

CHANNELS = 2**24  # at most: a damaged file may claim any number, and choices among them are lists


@dataclass(frozen=True)
class Metadata:
    """A node input of which only the shape matters, or only the element type. constant: whether
    what the node gives is known."""

    index: int
    slot: int
    value: Value
    shape: bool
    constant: bool


@dataclass(frozen=True)
class Move:
    """A node that moves axes: root is the tensor in the original layout that others are of, value
    is what it holds."""

    value: Value
    root: str
    before: Layout
    after: Layout


@dataclass
class Lowered:
    """The graph of a scope, and how it hangs together with the nodes.

    names: the tensor that holds a value. made_by: the nodes that make it, the last one gives it
    its name; none for inputs and for what comes from outside. kinds: what is known of it as a
    tensor. pads: padding that a node does not spell out (auto_pad), as (low, ..., high, ...).
    fixed: values whose nodes run at one size of the input only. hidden: tensors inside of a value.
    expanded: constants that are expanded to the size at hand, as they broadcast. selects: values
    whose nodes run at certain sizes only, as the channels that they select. readers: the nodes that
    read a tensor.
    bare: for what norms would make without their scale and bias, what they make; both have the
    name of the node's output. moved: the value that another one is, in which layout; trails: the
    nodes that moved it since something was made of it; roots: the tensor that the trip began with.
    rooted: values that have no tensor but in another layout, or where they come back. moves: the
    nodes that move; around: by the last of a round trip, those that compute shapes for it.
    inside: the nodes of round trips; ends: the last of each. forms: rooted values whose tensor is
    in this layout; back: the nodes that bring it back; steps: for rooted ones, what moved each
    operand for them. copies: what copies of nodes give, by the node and what they read.
    sized: the inputs of which the user told the size.
    """

    scope: Scope
    constants: Constants
    graph: Graph = field(default_factory=Graph)
    names: dict[Value, str] = field(default_factory=dict)
    value_of: dict[str, Value] = field(default_factory=dict)
    made_by: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    kinds: dict[Value, Type] = field(default_factory=dict)
    metadata: list[Metadata] = field(default_factory=list)
    pads: dict[int, list[int]] = field(default_factory=dict)
    fixed: set[Value] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    expanded: dict[str, np.ndarray] = field(default_factory=dict)
    selects: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)
    bare: dict[Value, Value] = field(default_factory=dict)
    moved: dict[Value, tuple[Value, Layout]] = field(default_factory=dict)
    rooted: set[Value] = field(default_factory=set)
    moves: dict[int, Move] = field(default_factory=dict)
    trails: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    roots: dict[Value, str] = field(default_factory=dict)
    around: dict[int, tuple[int, ...]] = field(default_factory=dict)
    inside: set[int] = field(default_factory=set)
    ends: set[int] = field(default_factory=set)
    forms: dict[Value, Layout] = field(default_factory=dict)
    back: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    steps: dict[Value, dict[Value, tuple[int, ...]]] = field(default_factory=dict)
    copies: dict[tuple[int, str], str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    sized: set[str] = field(default_factory=set)

    @property
    def free(self) -> set[int]:
        """The nodes that move axes and do so for as long as anything reads what they make."""
        return self.moves.keys() - self.inside

    def place(self, value: Value) -> int:
        """The index of the last node that makes a value; -1 where none does."""
        while not self.made_by[value] and value in self.moved:
            value, _ = self.moved[value]
        return self.made_by[value][-1] if self.made_by[value] else -1


@dataclass(frozen=True)
class NodeView:
    """One node as a recogniser sees it."""

    index: int
    op: str
    attrs: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def input(self, slot: int) -> str:
        """The name of an input; empty where it is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else ""

    @property
    def output(self) -> str:
        return self.outputs[0]

    @property
    def single(self) -> bool:
        """Whether only the first output is asked for."""
        return not any(self.outputs[1:])


class Lowering:
    """The state of one graph that is being read."""

    def __init__(
        self,
        to: Lowered,
        ranks: dict[str, int],
        at_sizes: Callable[[], list[Inferred]],
        shapes: Shapes = (),
    ) -> None:
        self.to = to
        self.shapes = shapes
        self.batch = batch_of(shapes)
        self.graph = to.graph
        self.scope = to.scope
        self.constants = to.constants
        self.opset = to.scope.opset
        self.ranks = ranks
        self.at_sizes = functools.cache(at_sizes)  # several inferences, where they are needed
        self.done: set[int] = set()
        self.trips: dict[int, tuple[int, ...]] = {}  # the round trip that a node belongs to
        self.readers = to.readers
        self.makers: dict[str, int] = {}

    # Reading.

    def view(self, index: int) -> NodeView:
        """A node of the scope."""
        proto, attrs = self.scope.protos[index], dict(self.scope.nodes[index].attrs)
        return NodeView(index, proto.op_type, attrs, tuple(proto.input), tuple(proto.output))

    def is_ours(self, index: int) -> bool:
        """Whether a node is one of ONNX's own operators."""
        return self.scope.protos[index].domain in ("", "ai.onnx")

    def is_pure(self, index: int) -> bool:
        """Whether all that a node does is to compute its outputs."""
        return self.is_ours(index) and self.scope.protos[index].op_type in PURE

    def value(self, name: str) -> Value:
        """The value that a tensor holds; a name from outside becomes an input here."""
        if name not in self.to.value_of:
            self.make(None, name, Opaque("outside"), ())
        return self.to.value_of[name]

    def is_value(self, name: str) -> bool:
        return bool(name) and name not in self.constants

    def known(self, value: Value) -> tuple[int, int] | None:
        """(channels, rank) of a value."""
        node = self.graph.nodes[value]
        return None if node.channels is None or node.rank is None else (node.channels, node.rank)

    def ndim(self, value: Value) -> int | None:
        """The number of axes of a value."""
        return self.to.kinds[value].ndim

    def is_float(self, value: Value) -> bool:
        return self.to.kinds[value].elem in FLOATS

    def only_reader(self, node: NodeView) -> NodeView | None:
        """The node that alone reads the first output, where that is no output of the graph."""
        raise NotImplementedError

    def read_late(self, node: NodeView, whole: bool) -> None:
        """A node that was passed over: of what it asks the shape, and as a whole what it makes."""
        raise NotImplementedError

    def producer(self, name: str) -> NodeView | None:
        """The node of the scope, one of ONNX's own, that makes a tensor."""
        made = self.makers.get(name)
        return self.view(made) if made is not None and self.is_ours(made) else None

    @functools.cached_property
    def origins(self) -> dict[str, frozenset[str]]:
        """What the scope is given, of which each tensor that it makes is computed."""
        found: dict[str, frozenset[str]] = {}
        for index, proto in enumerate(self.scope.protos):
            names = [name for name in self.scope.reads(index) if self.is_value(name)]
            given = [found.get(name, frozenset({name})) for name in names]
            found.update(dict.fromkeys(proto.output, frozenset().union(*given)))
        return found

    def made_of(self, name: str) -> NodeView | None:
        """The node of the graph that makes a tensor."""
        made = self.to.made_by.get(self.to.value_of.get(name, -1), ())
        return self.view(made[-1]) if made else None

    def channel_axis(self, value: Value, axis: int) -> bool:
        """Whether an axis, perhaps counted from the end, is that of the channels."""
        ndim, known = self.ndim(value), self.known(value)
        if known is None or (ndim is None and axis >= 0):
            return False
        return (axis if axis < 0 else axis - (ndim or 0)) == -(known[1] + 1)

    def downstream(
        self, node: NodeView, follows: Callable[[NodeView], bool], most: int
    ) -> list[NodeView]:
        """The node and those that come after it, in the order of the file, as far as `follows`
        says and `most` of them."""
        found, todo, seen = list[NodeView](), [node.index], {node.index}
        while todo and len(found) < most:
            view = self.view(heapq.heappop(todo))
            if not follows(view):
                continue
            found.append(view)
            for reader in self.readers.get(view.output, ()):
                if reader not in seen:
                    seen.add(reader)
                    heapq.heappush(todo, reader)
        return found

    def enclosed(
        self, nodes: set[int], ends: set[str], belongs: Callable[[int], bool]
    ) -> set[int] | None:
        """The nodes, and those that read what they make, but for the ends, if that comes to nothing
        but what the nodes themselves read; None where anything else reads it.

        belongs: whether a node may do so.
        """
        direct, seen, todo = set[int](), set(nodes), sorted(nodes)
        while todo:
            index = todo.pop()
            for name in self.scope.protos[index].output:
                if not name or (name in ends and index in nodes):
                    continue
                readers = self.readers.get(name, [])
                if name in self.scope.outputs or (index not in nodes and not readers):
                    return None
                for reader in set(readers) - seen:
                    if not belongs(reader):
                        return None
                    seen.add(reader)
                    todo.append(reader)
                    if index in nodes:
                        direct.add(reader)
        return nodes | direct

    @functools.cached_property
    def about_shape(self) -> set[int]:
        """The nodes that make constants, or something of which only the shape is asked for."""
        found: set[int] = set()

        def unread(name: str) -> bool:
            readers = self.readers.get(name, ())
            return name not in self.scope.outputs and found.issuperset(readers)

        for index in reversed(range(len(self.scope.protos))):  # readers come after what they read
            made = [name for name in self.scope.protos[index].output if name]
            if all(name in self.constants or unread(name) for name in made):
                found.add(index)
        return found

    # Writing.

    def learn(self, value: Value, elem: int, ndim: int | None = None) -> None:
        """What a node says of its operand, where inference knows less, as in functions."""
        kind = self.to.kinds[value]
        dims = (None,) * ndim if kind.dims is None and ndim is not None else kind.dims
        self.to.kinds[value] = Type(kind.elem or elem, dims)

    def make(
        self,
        node: NodeView | None,
        name: str,
        producer: Producer,
        operands: tuple[Value, ...],
        nodes: tuple[int, ...] | None = None,
    ) -> Value:
        """A new value for the tensor `name`, made by the node, or by several nodes; an empty
        name is a part of one."""
        first = self.graph.nodes[operands[0]] if operands else None
        label = self.scope.label(node.index) if node else name
        made = Node(producer, label, inner=not name)
        kind = self.scope.types.get(name) if name else None
        if kind is None or kind.dims is None:
            guess = self._kind(producer, operands)
            kind = Type(kind.elem if kind else guess.elem, guess.dims)
        if isinstance(producer, Sum | Concat):
            made.channels, made.rank = self._joined(producer, operands)
        elif not isinstance(producer, Opaque | Gated):
            made.channels, made.rank = producer.out_channels, producer.rank
        else:
            made.channels, made.rank = self._guess(name, kind)
        made.area = self.batch * self._area(kind, made.rank)
        if first is None:
            given = input_area(name, made.channels, made.rank, self.shapes)
            self.to.sized.update([name] if given else [])
            made.area = given or made.area or self.batch * NOMINAL_AREA[made.rank or 2]
        made.area = made.area or out_area(producer, self.graph.nodes[operands[0]].area)
        value = self.graph.add(made, operands)
        self.to.kinds[value] = kind
        self.to.made_by[value] = nodes or ((node.index,) if node else ())
        if name:
            self.to.names[value] = name
            self.to.value_of[name] = value
        return value

    def _kind(self, producer: Producer, operands: tuple[Value, ...]) -> Type:
        """The type where inference knows none, as in functions: a linear map keeps the type."""
        if not operands or isinstance(producer, Opaque):
            return Type(0)
        kinds = [self.to.kinds[operand] for operand in operands]
        ndims = [kind.ndim for kind in kinds if kind.ndim is not None]
        known = len(ndims) == len(kinds)
        return Type(kinds[0].elem, (None,) * max(ndims) if known else None)

    def _guess(self, name: str, kind: Type) -> tuple[int | None, int | None]:
        rank = self.ranks.get(name)
        if kind.dims is None or rank is None or len(kind.dims) < rank + 1:
            return None, None
        size = kind.dims[-(rank + 1)]
        return (size, rank) if isinstance(size, int) and size <= CHANNELS else (None, None)

    @staticmethod
    def _area(kind: Type, rank: int | None) -> float:
        """The positions of one sample: all but the channels, without the batch."""
        if rank is None or kind.dims is None:
            return 0.0
        dims = kind.dims[len(kind.dims) - rank :] if rank else kind.dims[1:-1]
        sizes = [dim for dim in dims if isinstance(dim, int)]
        return float(math.prod(sizes)) if len(sizes) == len(dims) else 0.0

    def _joined(
        self, producer: Producer, operands: tuple[Value, ...]
    ) -> tuple[int | None, int | None]:
        present = [fact for operand in operands if (fact := self.known(operand)) is not None]
        if len(present) < len(operands) or len({rank for _, rank in present}) > 1:
            return None, None
        counts = [channels for channels, _ in present]
        total = sum(counts) if isinstance(producer, Concat) else max(counts)
        return total, present[0][1]

    def opaque(self, node: NodeView, reason: str | None = None) -> None:
        """Values that no pass looks into, for all outputs of the node."""
        reads = sorted(self.scope.reads(node.index))
        producer = Opaque(reason or node.op, "product" if node.op == "Mul" else "")
        operands = tuple(self.value(name) for name in reads if self.is_value(name))
        for name in node.outputs:
            if name:
                self.make(node, name, producer, operands)

    def apply(
        self,
        node: NodeView,
        producer: Operator,
        value: Value,
        name: str | None = None,
        nodes: tuple[int, ...] | None = None,
    ) -> bool:
        """The producer on a value; False where the two do not fit."""
        known = self.known(value)
        if isinstance(producer, Pool | Pad):
            if known is None or known[1] != producer.rank:
                return False
        elif known is None:
            reader = self.graph.nodes[value]
            if not isinstance(reader.producer, Opaque):
                return False
            reader.channels, reader.rank = producer.in_channels, producer.rank
        elif known != (producer.in_channels, producer.rank):
            return False
        output = node.output if name is None else name
        made = self.make(node, output, producer, (value,), nodes)
        self.learn(made, self.to.kinds[value].elem)
        return True

    def affine(self, value: Value, scale: Any, shift: Any) -> Affine | None:
        """scale * x + shift on a value, by arrays of shape (channels,)."""
        known = self.known(value)
        return None if known is None else Affine(scale, shift, known[1])
