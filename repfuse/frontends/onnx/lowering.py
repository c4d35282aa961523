"""From the nodes of one ONNX graph to the compiler's graph: the values, and how to add one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from repfuse.cost import out_area
from repfuse.frontends.onnx.constants import Constants
from repfuse.frontends.onnx.scopes import Scope
from repfuse.frontends.onnx.shapes import FLOATS, Type
from repfuse.graph import Concat, Graph, Node, Opaque, Producer, Sum, Value
from repfuse.operators import Affine, Operator, Pad, Pool

__all__ = ["Lowered", "Lowering", "Metadata", "NodeView"]

NOMINAL_AREA = {0: 196.0, 1: 16384.0, 2: 224.0**2, 3: 16 * 112.0**2}


@dataclass(frozen=True)
class Metadata:
    """A node input of which only the shape matters, or only the element type."""

    index: int
    slot: int
    value: Value
    shape: bool


@dataclass
class Lowered:
    """The graph of a scope, and how it hangs together with the nodes.

    names: the tensor that holds a value. made_by: the nodes that make it, the last one gives it
    its name; none for inputs and for what comes from outside. kinds: what is known of it as a
    tensor. pads: padding that a node does not spell out (auto_pad), as (low, ..., high, ...).
    fixed: values whose nodes run at one size of the input only. hidden: tensors inside of a value.
    instead: for a Shape node, a tensor of the same shape that is there when its value is proved.
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
    instead: dict[int, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


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

    def __init__(self, to: Lowered, ranks: dict[str, int]) -> None:
        self.to = to
        self.graph = to.graph
        self.scope = to.scope
        self.constants = to.constants
        self.opset = to.scope.opset
        self.ranks = ranks
        self.done: set[int] = set()
        self.readers: dict[str, list[int]] = {}
        self._makers: dict[str, int] = {}

    # Reading.

    def view(self, index: int) -> NodeView:
        """A node of the scope."""
        proto, attrs = self.scope.protos[index], dict(self.scope.nodes[index].attrs)
        return NodeView(index, proto.op_type, attrs, tuple(proto.input), tuple(proto.output))

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

    def channel_axis(self, value: Value, axis: int) -> bool:
        """Whether an axis, perhaps counted from the end, is that of the channels."""
        ndim, known = self.ndim(value), self.known(value)
        if known is None or (ndim is None and axis >= 0):
            return False
        return (axis if axis < 0 else axis - (ndim or 0)) == -(known[1] + 1)

    def producer(self, name: str) -> NodeView | None:
        """The node of the scope that makes a tensor."""
        if not self._makers:
            for index, proto in enumerate(self.scope.protos):
                self._makers.update(dict.fromkeys(proto.output, index))
        made = self._makers.get(name)
        if made is None or self.scope.protos[made].domain not in ("", "ai.onnx"):
            return None
        return self.view(made)

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
        elif not isinstance(producer, Opaque):
            made.channels, made.rank = producer.out_channels, producer.rank
        else:
            made.channels, made.rank = self._guess(name, kind)
        made.area = out_area(producer, first.area) if first else 0.0
        made.area = self._area(kind, made.rank) or made.area or NOMINAL_AREA[made.rank or 2]
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
        return (size, rank) if isinstance(size, int) else (None, None)

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
        operands = tuple(self.value(name) for name in reads if self.is_value(name))
        for name in node.outputs:
            if name:
                self.make(node, name, Opaque(reason or node.op), operands)

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
