"""From a selection to the nodes of a graph: which stay, which go, which read another tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from repfuse.compiler import Alternatives
from repfuse.frontends.onnx.constants import PURE
from repfuse.frontends.onnx.emit import on_tensor
from repfuse.frontends.onnx.forms import way_of
from repfuse.frontends.onnx.lowering import Lowered, Metadata
from repfuse.frontends.onnx.order import Order
from repfuse.graph import Opaque, Value
from repfuse.mixing import gates_of
from repfuse.operators import Affine, Conv, Mixed
from repfuse.select import Selection, Term

__all__ = ["Layout", "lay_out"]


@dataclass
class Layout:
    """What becomes of the nodes. dropped: their indices. moved: what a node that reads a shape or
    a type reads from now on. frozen: nodes that ask a value which goes for sizes that are known.
    lost: values whose shape or type nothing else has, so that they must stay. unwritable: rewritten
    values that are only a part of a node, or that read such a part. bare: what norms make that lose
    their scale and bias. kept: nodes that move what new ones read; copied: those that are written
    once more."""

    dropped: set[int] = field(default_factory=set)
    moved: dict[Metadata, Value] = field(default_factory=dict)
    frozen: set[int] = field(default_factory=set)
    lost: set[Value] = field(default_factory=set)
    unwritable: set[Value] = field(default_factory=set)
    bare: set[Value] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    copied: set[int] = field(default_factory=set)


def lay_out(lowered: Lowered, found: Alternatives, selection: Selection) -> Layout:
    """The layout of a selection; it can be written if nothing in it is lost or unwritable."""
    graph, choices, layout = lowered.graph, selection.choices, Layout()
    needed: set[int] = set()
    linear: set[int] = set()
    for value, node in graph.nodes.items():
        indices = lowered.made_by[value]
        made = value in choices and choices[value].original and not node.inner
        stays = made if graph.is_only_taken_apart(value) else made or _is_opaque(lowered, value)
        (needed if stays else linear).update(indices)
        terms = choices[value].terms if value in choices else ()
        if terms and (node.inner or not all(on_tensor(lowered, term) for term in terms)):
            layout.unwritable.add(value)
        ends = {value, *(term.source for term in terms)} if terms else set[Value]()
        if any(end in lowered.rooted and end not in lowered.names for end in ends):
            layout.unwritable.add(value)
        if value not in layout.unwritable and not _find_ways(lowered, value, terms, layout):
            layout.unwritable.add(value)
        bare = {term.source for term in terms} & lowered.bare.keys()
        layout.bare |= bare
        if any(lowered.bare[source] in choices for source in bare):
            layout.unwritable.add(value)
    free = lowered.free
    layout.dropped = ((linear - needed) | _unread(lowered, selection)) - free
    layout.dropped |= free - _alive(lowered, layout, free)
    layout.dropped -= layout.kept
    in_vain = _in_vain(lowered, selection, layout) if lowered.metadata else set()
    order = Order(lowered, selection, layout.dropped)
    for reader in lowered.metadata:
        if reader.index in in_vain:
            continue
        survivors = _survivors(lowered, found, selection, reader, layout)
        survivor = _first(lowered, order, reader, survivors)
        if reader.constant and survivor != reader.value:
            layout.frozen.add(reader.index)
        elif survivor is None:
            layout.lost.add(reader.value)
        elif survivor != reader.value or _maker(lowered, reader) in layout.dropped & free:
            layout.moved[reader] = survivor
            order.move(reader.index, survivor)
    return layout


def _first(
    lowered: Lowered, order: Order, reader: Metadata, survivors: Iterator[Value]
) -> Value | None:
    """The first of the values that is not computed of what the reader says of it."""
    after: set[str] | None = None
    for value in (v for v in survivors if v in lowered.names):
        if lowered.place(value) < reader.index:
            return value
        after = order.after(reader.index) if after is None else after
        if lowered.names[value] not in after:
            return value
    return None


def _find_ways(lowered: Lowered, value: Value, terms: tuple[Term, ...], layout: Layout) -> bool:
    """Whether all terms can be written in the layouts that their tensors have; how, is noted."""
    if not lowered.moves:
        return True
    makers = {lowered.scope.protos[index].output[0]: index for index in lowered.free}
    for term in filter(None, (on_tensor(lowered, term) for term in terms)):
        way, reads = way_of(lowered, value, term), list[str]()
        if isinstance(term.operator, Mixed):
            if way is None or way.kept or way.copied or value in lowered.forms:
                return False
            gates, base = gates_of(term.operator)
            factors = [gate.value for gate in gates] if base is None else [base]
            reads += [lowered.names[factor] for factor in factors]
        if way is None:
            return False
        layout.kept.update(way.kept)
        layout.kept.update(makers[name] for name in (*reads, way.tensor) if name in makers)
        layout.copied.update(way.copied)
    return True


def _alive(lowered: Lowered, layout: Layout, free: set[int]) -> set[int]:
    """The nodes that move axes and whose output something still reads for more than its shape."""
    asks, alive = {reader.index for reader in lowered.metadata}, set[int]()
    for index in sorted(free, reverse=True):
        name = lowered.scope.protos[index].output[0]
        reads = name in lowered.scope.outputs or index in layout.kept
        reads |= lowered.value_of.get(name) in lowered.graph.pinned
        for reader in lowered.readers.get(name, ()):
            gone = reader not in alive if reader in free else reader in layout.dropped
            reads |= not gone and reader not in asks
        if reads:
            alive.add(index)
    return alive


def _maker(lowered: Lowered, reader: Metadata) -> int | None:
    """The node that makes the tensor of which the shape or the type is read."""
    name = lowered.scope.protos[reader.index].input[reader.slot]
    makers = [i for i in lowered.moves if lowered.scope.protos[i].output[0] == name]
    return makers[0] if makers else None


def _unread(lowered: Lowered, selection: Selection) -> set[int]:
    """The nodes of factors, and of views of them, that only products which are gone have read."""
    graph, gone, dropped = lowered.graph, set[Value](), set[int]()
    reads, todo = set[Value](), list[Value]()
    for choice in selection.rewritten().values():
        for term in choice.terms:
            reads.add(term.source)
            if isinstance(term.operator, Mixed):
                gates, base = gates_of(term.operator)
                if base is None:
                    reads.update(gate.value for gate in gates)
                else:
                    reads.add(base)
                todo += [gate.value for gate in gates]
    kept = reads.union(graph.pinned, (reader.value for reader in lowered.metadata))
    made: dict[int, set[Value]] = {}
    for value, indices in lowered.made_by.items() if todo else ():
        for index in indices:
            made.setdefault(index, set()).add(value)
    while todo:
        value = todo.pop()
        indices = lowered.made_by[value]
        others = set[Value]().union(*(made[index] for index in indices))
        if value in gone or not indices or not others.isdisjoint(kept):
            continue
        readers = {reader for other in others for reader in graph.readers(other)}
        if any(_exists(lowered, selection, r) and r not in gone for r in readers - others):
            continue
        gone |= others
        dropped.update(indices)
        todo += graph.operands(value)
    return dropped


def _in_vain(lowered: Lowered, selection: Selection, layout: Layout) -> set[int]:
    """The nodes that are computed for dropped ones alone, such as the sizes of a Reshape."""
    dropped = layout.dropped - layout.copied
    settled = layout.dropped | layout.copied | layout.kept
    for choice in selection.rewritten().values():  # new nodes read what only dropped ones have read
        settled.update(index for value in choice.reads for index in lowered.made_by[value])
    protos, leaves, found = lowered.scope.protos, set(lowered.scope.outputs), set[int]()
    for index in range(len(protos) - 1, -1, -1):
        node = protos[index]
        outputs = [name for name in node.output if name]
        readers = [lowered.readers.get(name, []) for name in outputs]
        if index in settled:
            continue
        if node.op_type not in PURE or node.domain not in ("", "ai.onnx"):
            continue
        if not leaves.isdisjoint(outputs) or not all(readers):
            continue
        if all(i in dropped or i in found for some in readers for i in some):
            found.add(index)
    return found


def _is_opaque(lowered: Lowered, value: Value) -> bool:
    return isinstance(lowered.graph.nodes[value].producer, Opaque)


def _exists(lowered: Lowered, selection: Selection, value: Value) -> bool:
    node = lowered.graph.nodes[value]
    return not node.inner and (isinstance(node.producer, Opaque) or value in selection.choices)


def _survivors(
    lowered: Lowered,
    found: Alternatives,
    selection: Selection,
    reader: Metadata,
    layout: Layout,
) -> Iterator[Value]:
    """Values that stay and have the same shape, or the same type, nearest first; earlier ones
    before later ones, so that the order of the nodes need not change where it can be helped.

    The shape stays where a value comes to a scale and shift of another one: x + c * x, say.
    """
    graph, todo, seen = lowered.graph, [reader.value], {reader.value}
    while todo:
        value = todo.pop(0)
        if _is_at_hand(lowered, selection, reader, value, layout):
            yield value
        producer = graph.nodes[value].producer
        nearby = _in_its_form(lowered, value) if reader.shape else list[Value]()
        if not reader.shape and not isinstance(producer, Opaque):
            nearby += graph.operands(value)
        nearby += [s for s, operator in found.of(value).items() if _keeps_shape(operator)]
        nearby += [r for r in graph.readers(value) if _keeps_shape(found.of(r).get(value))]
        for other in nearby:
            if other not in seen:
                seen.add(other)
                todo.append(other)


def _is_at_hand(
    lowered: Lowered, selection: Selection, reader: Metadata, value: Value, layout: Layout
) -> bool:
    """Whether the tensor of a value is there, and has the shape that is asked for."""
    if value in lowered.moved and lowered.free:
        source, _ = lowered.moved[value]
        if lowered.names.get(source) == lowered.names[value]:
            return source in selection.choices
        trail = lowered.trails[value]
        if trail and trail[-1] in lowered.free:
            return trail[-1] not in layout.dropped
    if value in lowered.forms and reader.shape:  # of its own form nothing has the shape but itself
        return value == reader.value and _maker(lowered, reader) not in layout.dropped
    return _exists(lowered, selection, value)


def _in_its_form(lowered: Lowered, value: Value) -> list[Value]:
    """The same value, or one that is as large, moved in the same way."""
    if value not in lowered.moved:
        return []
    graph, (source, form) = lowered.graph, lowered.moved[value]
    keeps = _keeps_shape(graph.nodes[source].producer)
    same = {source, *(graph.operands(source) if keeps else ())}
    same |= {r for r in graph.readers(source) if _keeps_shape(graph.nodes[r].producer)}
    return [
        other
        for other, (root, layout) in lowered.moved.items()
        if root in same and (layout.groups, layout.splits) == (form.groups, form.splits)
    ]


def _keeps_shape(operator: object) -> bool:
    """Whether an operator gives data of the shape that it was given."""
    if isinstance(operator, Conv):
        widens = operator.in_channels != operator.out_channels or operator.transposed
        return not widens and set(operator.stride) <= {1} and not any(operator.slack)
    return isinstance(operator, Affine)
