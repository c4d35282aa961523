"""Recognise nodes that permute or flatten axes and leave the channels whole, and work under them.

What works on each position by itself is read as work on the tensor before it was moved: a batch
norm over flattened tokens is a scale and shift of the tokens. In a round trip the axes come back,
and nothing else reads what is in between: then all of it goes. Otherwise what is worked on is
written where it stood, and nodes that move axes stay as long as anything reads what they make.
"""

from __future__ import annotations

from typing import Any

from repfuse.frontends.onnx.lowering import Lowering, Move, NodeView
from repfuse.frontends.onnx.shapes import Type
from repfuse.graph import Opaque, Value
from repfuse.layouts import Layout, at_rank

__all__ = ["move", "pull", "show"]

MOVES = frozenset(["Transpose", "Reshape", "Flatten"])
WORK = frozenset(["Add", "BatchNormalization", "Conv", "Div", "Gemm", "MatMul", "Mul", "Sub"])


def move(lowering: Lowering, node: NodeView) -> str | bool:
    """Transpose, Reshape and Flatten."""
    if not lowering.is_value(node.input(0)):
        return False
    value = lowering.value(node.input(0))
    to = lowering.to
    if value not in to.moved and node.index in to.inside:
        _give_up(lowering, node)
    if value in to.moved:
        source, before = to.moved[value]
        if to.names.get(source) == node.input(0):
            _begin(lowering, node, before)
    else:
        known, ndim = lowering.known(value), lowering.ndim(value)
        if known is None or ndim is None or not lowering.is_float(value):
            return False
        if ndim < known[1] + 1 + bool(known[1]) or value not in to.names:
            return False
        source, before = value, Layout.of(ndim, known[1], to.kinds[value].dims or ())
        _begin(lowering, node, before)
    after = _step(lowering, node, before)
    if after is None:
        return False
    trail = (*to.trails.get(value, to.back.get(value, ())), node.index)
    root = to.roots.get(value, node.input(0))
    to.moves[node.index] = Move(source, root, before, after)
    if node.index in to.ends and source not in to.names:
        _come_back(lowering, node, source, after, trail, root)
        return True
    if after.is_original and node.index not in to.inside:
        to.value_of[node.output] = source
        if source in to.forms:
            to.back.setdefault(source, trail)
        return True
    _whole(lowering, node, node.output, source, after, trail, root)
    return True


def _come_back(
    lowering: Lowering,
    node: NodeView,
    source: Value,
    layout: Layout,
    trail: tuple[int, ...],
    root: str,
) -> None:
    """The end of a round trip: its node gives what was worked on in between."""
    to = lowering.to
    to.made_by[source] = (*to.made_by[source], *to.around.get(node.index, ()), *trail)
    to.names[source], to.value_of[node.output] = node.output, source
    kind = lowering.scope.types.get(node.output)
    if layout.is_original:
        to.kinds[source] = to.kinds[source] if kind is None else kind
        return
    to.forms[source] = layout
    _whole(lowering, node, node.output, source, layout, (), root)
    to.made_by[to.value_of[node.output]] = ()


def _whole(
    lowering: Lowering,
    node: NodeView,
    name: str,
    source: Value,
    layout: Layout,
    trail: tuple[int, ...],
    root: str,
) -> None:
    """The value of a tensor that is the source in another layout."""
    whole = lowering.make(node, name, Opaque(node.op), (source,))
    made, before = lowering.graph.nodes[whole], lowering.graph.nodes[source]
    made.inner, made.area = True, before.area
    made.channels, made.rank = None, None
    if layout.place == 1 or not layout.rank:
        made.channels, made.rank = before.channels, layout.rank
    lowering.to.moved[whole] = source, layout
    lowering.to.trails[whole], lowering.to.roots[whole] = trail, root


def _begin(lowering: Lowering, node: NodeView, layout: Layout) -> None:
    """Note a round trip that begins; what only computes shapes for it goes with it."""
    chain = _comes_back(lowering, node, layout)
    around = _around(lowering, tuple(chain), lowering.view(chain[-1])) if chain else None
    if around is None:
        return
    lowering.to.inside.update(chain)
    lowering.to.ends.add(chain[-1])
    lowering.trips.update(dict.fromkeys(chain, tuple(chain)))
    within = (*chain[:-1], *around)
    inside = {name for index in within for name in lowering.scope.protos[index].output}
    lowering.to.hidden |= inside
    lowering.done |= around
    lowering.to.around[chain[-1]] = tuple(sorted(around))


def _give_up(lowering: Lowering, node: NodeView) -> None:
    """A round trip goes on with something else, because work in it was not understood: what is
    left of it is none, and that work gives values as any other.

    Nodes that were left out so far, as they would have gone with the trip, are read now.
    """
    to, chain = lowering.to, lowering.trips[node.index]
    rest = chain[chain.index(node.index) :]
    to.inside.difference_update(rest)
    to.ends.difference_update(rest)
    around = to.around.pop(chain[-1], ())
    lowering.done.difference_update(around)
    made = {name for i in (*chain, *around) for name in lowering.scope.protos[i].output}
    names = {name for name in made if to.value_of.get(name) not in to.moved}
    to.hidden -= names
    late = {index for name in names for index in lowering.readers.get(name, ())}
    for index in sorted(late.union(around)):
        if index < node.index:
            lowering.read_late(lowering.view(index), whole=index in around)


def _comes_back(lowering: Lowering, node: NodeView, layout: Layout) -> list[int]:
    """The nodes from here to one that gives the layout of the start again, each the only one that
    reads more of the one before than its shape; none where they do not come back."""
    current: NodeView | None = node
    worked, chain = False, list[int]()
    moved: Layout | None = layout
    while current is not None:
        chain.append(current.index)
        if current.op in MOVES:
            moved = _step(lowering, current, moved) if moved is not None else None
            if moved is None:
                return []
            if moved.groups == layout.groups:
                return chain if worked else []
        elif current.op in WORK and _has_one_source(lowering, current):
            worked = True
        else:
            return []
        current = _data_reader(lowering, current)
    return []


def _has_one_source(lowering: Lowering, node: NodeView) -> bool:
    """Whether a node reads one tensor beside constants, once or to add it to itself; other sums are
    written where they stand."""
    names = [name for name in node.inputs if name and name not in lowering.constants]
    return len(names) == 1 or (node.op == "Add" and len(set(names)) == 1)


def _data_reader(lowering: Lowering, node: NodeView) -> NodeView | None:
    """The node that alone reads the first output for more than its shape."""
    readers = lowering.readers.get(node.output, [])
    data = [index for index in readers if index not in lowering.about_shape]
    if len(data) != 1 or node.output in lowering.scope.outputs:
        return None
    return lowering.view(data[0]) if lowering.is_ours(data[0]) else None


def _around(lowering: Lowering, nodes: tuple[int, ...], last: NodeView) -> set[int] | None:
    """The nodes that read what is in between for its shape, and make no constants that are read;
    None where anything but these nodes asks for that."""
    chain, found = set(nodes), set[int]()
    todo = [name for i in nodes for name in lowering.scope.protos[i].output if name != last.output]
    while todo:
        name = todo.pop()
        if name in lowering.scope.outputs:
            return None
        for index in lowering.readers.get(name, ()):
            if index in chain or index in found:
                continue
            outputs = [made for made in lowering.scope.protos[index].output if made]
            if index not in lowering.about_shape or not outputs:
                return None
            read = any(lowering.readers.get(made) for made in outputs)
            if not read or not all(made in lowering.constants for made in outputs):
                found.add(index)
            todo += outputs
    return found


def _step(lowering: Lowering, node: NodeView, layout: Layout) -> Layout | None:
    """The layout after a node that moves axes."""
    found = _stepped(lowering, node, layout)
    return found if found is not None and found.order() is not None else None


def _stepped(lowering: Lowering, node: NodeView, layout: Layout) -> Layout | None:
    if node.op == "Transpose":
        order = node.attrs.get("perm", range(len(layout.groups))[::-1])
        return layout.permuted(list(order)) if len(order) == len(layout.groups) else None
    before, after = (lowering.scope.types.get(name) for name in (node.input(0), node.output))
    if before is None or after is None or before.dims is None or after.dims is None:
        return None
    given = lowering.constants.value(node.input(1)) if node.input(1) in lowering.constants else ()
    copied = {place for place, size in enumerate(given) if size == 0 and node.op == "Reshape"}
    return _viewed(layout, before, after, node.index, copied)


def _viewed(
    layout: Layout, before: Type, after: Type, index: int, copied: set[int]
) -> Layout | None:
    """Axes in a row that become one, or one that becomes several; all else has its size still.

    copied: axes of the result that the node takes over as they are, which axes of size 1 beside
    them do not show.
    """
    old: Any = before.dims
    new: Any = after.dims
    extra, count = len(new) - len(old), len(layout.groups)
    if len(old) != count:
        return None
    same = [old[i] is not None and i < len(new) and old[i] == new[i] for i in range(count)]
    tail = [
        old[i] is not None and 0 <= i + extra < len(new) and old[i] == new[i + extra]
        for i in range(count)
    ]
    if not extra:
        return layout if sum(not equal for equal in same) <= 1 else None
    for first in range(count):
        last = first + max(-extra, 0)
        if last >= count or not all(same[:first]):
            return None
        if not all(tail[last + 1 :]) or (extra < 0 and first in copied):
            continue
        if extra < 0:
            return layout.flattened(first, last)
        inside = layout.parts_of(first)
        if len(inside) == 1:
            parts = new[first : first + extra + 1]
            return layout.split(first, extra + 1, parts if parts.count(None) <= 1 else index)
        return _apart(layout, first, new[first : first + extra + 1])
    return None


def _apart(layout: Layout, place: int, sizes: tuple[Any, ...]) -> Layout | None:
    """An axis of several of the original as these, where all but one of the sizes are known."""
    inside = layout.parts_of(place)
    known = dict(layout.lengths)
    wanted = [known.get(which) if parts == 1 else None for which, _, parts in inside]
    if len(inside) != len(sizes):
        return None
    odd = sum(a is None or a != b for a, b in zip(wanted, sizes, strict=True))
    return layout.apart(place) if odd <= 1 else None


def pull(lowering: Lowering, node: NodeView, value: Value) -> None:
    """Work on moved values as the same work on what they are of."""
    graph, to = lowering.graph, lowering.to
    made, operands = graph.nodes[value], graph.operands(value)
    origins = [to.moved[operand] for operand in operands if operand in to.moved]
    if not origins or len(origins) < len(operands) or made.within or value not in to.names:
        return
    source, layout = origins[0]
    rank = graph.nodes[source].rank
    if rank is None or any(not _alike(lowering, origin, origins[0]) for origin in origins):
        return
    producer = at_rank(made.producer, rank)
    if producer is None or made.rank != layout.rank:
        return
    roots = tuple(root for root, _ in origins)
    graph.reroot(value, producer, roots)
    made.rank = rank
    to.rooted.add(value)
    nodes, name = to.made_by[value], to.names[value]
    trails = [index for operand in operands for index in to.trails[operand]]
    to.made_by[value] = (*dict.fromkeys(trails), *nodes)
    kind = to.kinds[value]
    dims = list(to.kinds[source].dims or ())
    dims[layout.channel] = made.channels
    to.kinds[value] = Type(kind.elem, tuple(dims))
    if node.index in to.inside:
        del to.names[value]
    else:
        to.forms[value] = layout
        to.steps[value] = {
            root: to.trails[operand] for root, operand in zip(roots, operands, strict=True)
        }
    _whole(lowering, node, name, value, layout, (), to.roots[operands[0]])
    whole = to.value_of[name]
    to.kinds[whole] = kind
    to.made_by[whole] = nodes if node.index in to.inside else ()


def _alike(lowering: Lowering, origin: tuple[Value, Layout], other: tuple[Value, Layout]) -> bool:
    """Whether two values are moved in the same way."""
    nodes = lowering.graph.nodes
    ranks = {nodes[root].rank for root, _ in (origin, other)}
    forms = {(by.groups, by.channel, by.splits) for _, by in (origin, other)}
    return len(ranks) == 1 and len(forms) == 1


def show(lowering: Lowering) -> None:
    """What is read in its moved form is a value as any other, made by all nodes that move it."""
    graph, to = lowering.graph, lowering.to
    for whole in to.moved:
        if graph.readers(whole) or whole in graph.pinned:
            graph.nodes[whole].inner = False
            to.made_by[whole] = to.trails[whole] or to.made_by[whole]
