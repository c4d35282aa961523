"""The graph of a model, and how it hangs together with the recorded calls."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx, nn

from repfuse.areas import Shapes
from repfuse.frontends.torch.calls import Call, Traces
from repfuse.frontends.torch.constants import Constants
from repfuse.frontends.torch.ties import Ties
from repfuse.graph import Graph, Value
from repfuse.layouts import Layout

__all__ = ["Lowered"]

SIZES = {"size", "numel", "stride", "is_contiguous"}


@dataclass
class Lowered:
    """The graph of a model, and how it hangs together with the recorded calls.

    value_of: the value that a node made. node_of: the node that made a value. reads: for each
    node the value that each of its arguments had when it was read. errors: nodes whose recognition
    failed, which is a defect of repfuse. order: position of a node
    in the execution. changes: (position, storage) of every change in place. views: (the node that
    changes memory, a name that sees a part of it, what that name means from then on). names_of:
    the names that mean a value since the change that made it. built_on: the nodes that only
    prepare what a node makes, and go with it. fills: the assignments for which code reads
    a weight of a layer. shapes: those of the inputs, where the user gave them, sized: the inputs
    that one of them fits. bare: for the
    values that norms make, what they would make without their weight and bias; both are of one
    node. ties: the weights that have several users.
    moved: the value that another one is, in which layout; layouts: the same of the nodes that move,
    turned: the values that these move.
    rooted: values of which their node gives a moved form, and which; root_of: by this node.
    returned: the node that gives such a value as it is. counts: how many axes values have, where
    moves tell it. given, results: what the arguments of a call and what it returns mean there.
    looked_up: by the id of a layer what methods that forward does not call look up of it. shown:
    the tensors, by their ids, that a module prints something of.
    """

    graph: Graph
    traces: Traces
    modules: dict[str, nn.Module]
    constants: Constants
    value_of: dict[fx.Node, Value] = field(default_factory=dict)
    node_of: dict[Value, fx.Node] = field(default_factory=dict)
    reads: dict[fx.Node, dict[fx.Node, Value]] = field(default_factory=dict)
    order: dict[fx.Node, int] = field(default_factory=dict)
    storage: dict[fx.Node, fx.Node] = field(default_factory=dict)
    changes: list[tuple[int, fx.Node]] = field(default_factory=list)
    views: list[tuple[fx.Node, fx.Node, Value]] = field(default_factory=list)
    names_of: dict[Value, list[fx.Node]] = field(default_factory=dict)
    built_on: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    fills: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    bare: dict[Value, Value] = field(default_factory=dict)
    ties: Ties = field(default_factory=Ties)
    moved: dict[Value, tuple[Value, Layout]] = field(default_factory=dict)
    layouts: dict[fx.Node, tuple[Value, Layout]] = field(default_factory=dict)
    turned: set[Value] = field(default_factory=set)
    rooted: dict[Value, Layout] = field(default_factory=dict)
    root_of: dict[fx.Node, Value] = field(default_factory=dict)
    returned: dict[Value, fx.Node] = field(default_factory=dict)
    counts: dict[Value, int] = field(default_factory=dict)
    nodes: list[fx.Node] = field(default_factory=list)
    given: dict[Call, dict[fx.Node, Value]] = field(default_factory=dict)
    results: dict[Call, dict[fx.Node, Value]] = field(default_factory=dict)
    looked_up: dict[int, set[tuple[str, str]]] = field(default_factory=dict)
    shown: set[int] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    shapes: Shapes = ()
    sized: set[str] = field(default_factory=set)
    _seen_views: list[tuple[fx.Node, fx.Node]] | None = None
    _meanings: dict[fx.Node, list[Value]] | None = None
    _moves: dict[Value, list[fx.Node]] | None = None
    _asked: set[Value] | None = None
    _places: dict[Call, dict[fx.Node, int]] = field(default_factory=dict)
    _visible: dict[Call, tuple[set[fx.Node], set[Value]]] = field(default_factory=dict)

    def form(self, node: fx.Node) -> tuple[Value, Layout] | None:
        """The value that a node gives in a moved form, and which."""
        root = self.root_of.get(node)
        return self.layouts.get(node) if root is None else (root, self.rooted[root])

    def moves_of(self, value: Value) -> list[fx.Node]:
        """The nodes that give a value in another layout, or in its own again."""
        if self._moves is None:
            self._moves = {}
            for node, (source, _) in self.layouts.items():
                self._moves.setdefault(source, []).append(node)
        return self._moves.get(value, [])

    @property
    def asked(self) -> set[Value]:
        """The values that code asks for their size, also in a moved form."""
        if self._asked is None:
            self._asked = set()
            for node in self.nodes:
                if node in self.value_of or not _asks_size(node):
                    continue
                for source in node.all_input_nodes:
                    value = self.reads.get(node, {}).get(source, self.value_of.get(source))
                    form = self.form(source)
                    found = {value, form and form[0], self.moved.get(value or -1, (None,))[0]}
                    self._asked.update(one for one in found if one is not None)
        return self._asked

    def changes_between(self, first: int, last: int) -> list[tuple[int, fx.Node]]:
        """The changes in place from one position to another, both included."""
        begin = bisect_left(self.changes, first, key=lambda change: change[0])
        end = bisect_right(self.changes, last, key=lambda change: change[0])
        return self.changes[begin:end]

    def seen_views(self) -> list[tuple[fx.Node, fx.Node]]:
        """(changer, name) of the views that somebody reads after the change."""
        if self._seen_views is None:
            values, used = {view for _, _, view in self.views}, set[Value]()
            for view in sorted(values, reverse=True):
                readers = self.graph.readers(view)
                if view in self.graph.pinned or any(r not in values or r in used for r in readers):
                    used.add(view)
            self._seen_views = [(by, name) for by, name, view in self.views if view in used]
        return self._seen_views

    def node_at(self, position: int) -> fx.Node:
        return self.nodes[position]

    def place_in_call(self, node: fx.Node) -> int:
        """The position of a node among the items of the call that made it."""
        call: Call = node.meta["call"]
        if call not in self._places:
            self._places[call] = {
                item: place for place, item in enumerate(call.items) if isinstance(item, fx.Node)
            }
        return self._places[call][node]

    def _changed_values(self, names: set[fx.Node]) -> Iterator[Value]:
        """What names came to mean by changes in place."""
        if self._meanings is None:
            self._meanings = {}
            for value, changed in self.names_of.items():
                for name in changed:
                    self._meanings.setdefault(name, []).append(value)
        for name in names & self._meanings.keys():
            yield from self._meanings[name]

    def visible_in(self, call: Call) -> tuple[set[fx.Node], set[Value]]:
        """What the body of a method can name: its arguments, its nodes, the results of calls."""
        if call not in self._visible:
            found: set[fx.Node] = set()
            fx.node.map_arg((call.args, call.kwargs), found.add)
            for item in call.items:
                if isinstance(item, Call):
                    fx.node.map_arg(item.result, found.add)
                else:
                    found.add(item)
            values = {self.value_of[name] for name in found if name in self.value_of}
            values.update(self._changed_values(found))
            self._visible[call] = found, values
        return self._visible[call]


def _asks_size(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] == "shape"
    return node.op == "call_method" and node.target in SIZES
