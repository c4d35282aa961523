"""Recognise permutations and flattenings that leave the channels whole, and work under them.

What works on each position by itself is read as work on the tensor before it was permuted: a
Linear under a channels-last permute is a 1x1 conv.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from repfuse.frontends.torch.arguments import name_of, read
from repfuse.frontends.torch.lowering import Lowering
from repfuse.frontends.torch.memory import changed_arguments
from repfuse.frontends.torch.shuffles import symbol_of
from repfuse.graph import Opaque, Value
from repfuse.layouts import Layout, at_rank
from repfuse.operators import Affine, Conv

__all__ = ["move", "pull", "show"]


def move(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Value | None:
    """permute, transpose, flatten, view, reshape, reshape_as, unflatten of a value."""
    value = read(lowering, node, args[0])
    found = None if value is None else _layout(lowering, value)
    if value is None or found is None:
        return None
    source, layout = found
    moved = _moved(lowering, node, value, source, layout, args[1:], kwargs)
    if moved is None or moved.order() is None:
        return None
    return _place(lowering, node, source, moved)


def _layout(lowering: Lowering, value: Value) -> tuple[Value, Layout] | None:
    """What a value is of another one; of itself where it was not moved."""
    if value in lowering.to.moved:
        return lowering.to.moved[value]
    known, count = lowering.known(value), lowering.axes(value)
    if known is None or count is None or count < known[1] + 1 + bool(known[1]):
        return None
    return value, Layout.of(count, known[1])


def _place(lowering: Lowering, node: fx.Node, source: Value, layout: Layout) -> Value:
    """The value of a node that gives the source in this layout."""
    lowering.memory.share(node, [node.all_input_nodes[0]])
    lowering.to.layouts[node] = source, layout
    lowering.to.turned.add(source)
    if layout.is_original:
        lowering.to.returned.setdefault(source, node)
        return source
    return _whole(lowering, node, source, layout)


def _whole(lowering: Lowering, node: fx.Node, source: Value, layout: Layout) -> Value:
    whole = lowering.taken_apart(node, (source,))
    made, channels = lowering.graph.nodes[whole], lowering.graph.nodes[source].channels
    if layout.place == 1 or not layout.rank:
        made.channels, made.rank = channels, layout.rank
    lowering.to.counts[whole] = len(layout.groups)
    lowering.to.moved[whole] = source, layout
    return whole


def _moved(
    lowering: Lowering,
    node: fx.Node,
    value: Value,
    source: Value,
    layout: Layout,
    args: list[Any],
    kwargs: dict[str, Any],
) -> Layout | None:
    name = name_of(node)
    if name == "permute":
        order = args if len(args) > 1 else (args or [kwargs.get("dims")])[0]
        return layout.permuted(order) if _are_numbers(order) else None
    if name in ("transpose", "swapaxes"):
        pair = [*args, *kwargs.values()]
        count = len(layout.groups)
        if len(pair) != 2 or not _are_numbers(pair) or not all(-count <= a < count for a in pair):
            return None
        axes = list(range(count))
        first, second = pair[0] % count, pair[1] % count
        axes[first], axes[second] = second, first
        return layout.permuted(axes)
    if name == "flatten":
        given = {"start_dim": 0, "end_dim": -1}
        given |= {**dict(zip(given, args, strict=False)), **kwargs}
        ends = list(given.values())
        return layout.flattened(*ends) if _are_numbers(ends) and len(ends) == 2 else None
    if name == "reshape_as":
        other = read(lowering, node, args[0]) if args else None
        return None if other is None else _as(lowering, source, layout, other)
    if kwargs or not args:
        return None
    sizes = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
    return _viewed(lowering, node, value, layout, list(sizes))


def _are_numbers(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(isinstance(value, int) for value in values)


def _as(lowering: Lowering, source: Value, layout: Layout, other: Value) -> Layout | None:
    """The layout of another value of the same positions."""
    found = _layout(lowering, other)
    if found is None or layout.order() != found[1].order():
        return None
    root, wanted = found
    if lowering.known(root) != lowering.known(source):
        return None
    counts = {lowering.axes(root), lowering.axes(source)}
    axes = [axis for axis in range(max(c or 0 for c in counts)) if axis != layout.channel]
    same = all(_axis(lowering, root, axis) == _axis(lowering, source, axis) for axis in axes)
    return wanted if len(counts) == 1 and same else None


def _axis(lowering: Lowering, value: Value, axis: int) -> tuple[Any, ...]:
    """What tells the size of an axis: equal for axes that are as long, whatever the input.

    Parts of an axis are as long as those of the same axis that was split by the same sizes.
    """
    graph = lowering.graph
    while value not in lowering.to.moved:
        node, operands = graph.nodes[value], graph.operands(value)
        keeps = isinstance(node.producer, Affine) or value in lowering.to.bare.values()
        if isinstance(node.producer, Conv):
            same = set(node.producer.stride) <= {1} and not any(node.producer.slack)
            keeps = same and not node.producer.transposed
        if not keeps or lowering.axes(operands[0]) != lowering.axes(value):
            return ((value, axis),)
        value = operands[0]
    source, layout = lowering.to.moved[value]
    splits, found = dict(layout.splits), list[Any]()
    for which, part, parts in layout.groups[axis]:
        inner = _axis(lowering, source, which)
        found += inner if parts == 1 else [(inner, part, parts, splits[which])]
    return tuple(found)


def _viewed(
    lowering: Lowering, node: fx.Node, value: Value, layout: Layout, sizes: list[Any]
) -> Layout | None:
    """Axes in a row that become one, or one that becomes several; all else is what it was.

    At most one size of the axes that are split or joined is not known.
    """
    groups, place, extra = layout.groups, layout.place, len(sizes) - len(layout.groups)
    given = [symbol_of(lowering, size) for size in sizes]
    channels = lowering.graph.nodes[value].channels

    def equal(size: Any, axis: tuple[Any, ...]) -> bool:
        return isinstance(size, tuple) and _axis(lowering, *size) == axis

    def stays(mine: int, theirs: int) -> bool:
        """Whether an axis has the size that it had."""
        if mine == place:
            return bool(given[theirs] == channels)
        return equal(given[theirs], _axis(lowering, value, mine))

    if not extra:
        return layout if sum(not stays(i, i) for i in range(len(groups))) <= 1 else None
    for first in range(len(groups)):
        last = first + max(-extra, 0)
        before, after = range(first), range(last + 1, len(groups))
        if last >= len(groups) or not all(stays(i, i) for i in before):
            return None
        if not all(stays(i, i + extra) for i in after):
            continue
        if extra < 0:
            return layout.flattened(first, last)
        parts = given[first : first + extra + 1]
        inside = layout.parts_of(first)
        if len(inside) == 1:
            known = tuple(-1 if size is None else size for size in parts)
            return layout.split(first, len(parts), known if known.count(-1) <= 1 else node)
        source = lowering.to.moved[value][0] if value in lowering.to.moved else value
        if len(inside) == len(parts):
            wanted = zip(parts, inside, strict=True)
            odd = sum(
                count > 1 or not equal(size, _axis(lowering, source, which))
                for size, (which, _, count) in wanted
            )
            return layout.apart(first) if odd <= 1 else None
        return None
    return None


def pull(lowering: Lowering, node: fx.Node, value: Value) -> Value:
    """Work on moved values as the same work on what they are of; any other value as it is."""
    graph, made = lowering.graph, lowering.graph.nodes[value]
    operands = graph.operands(value)
    origins = [lowering.to.moved.get(operand) for operand in operands]
    whole = [origin for origin in origins if origin is not None]
    if not whole or len(whole) < len(operands) or value in lowering.to.moved:
        return value
    layout = whole[0][1]
    roots = tuple(source for source, _ in whole)
    ranks = {graph.nodes[root].rank for root in roots}
    if any(other != layout for _, other in whole) or len(ranks) != 1 or made.within:
        return value
    if lowering.to.node_of.get(value) is not node or changed_arguments(node, lowering.to.modules):
        return value
    (rank,) = ranks
    producer = None if rank is None else at_rank(made.producer, rank)
    if producer is None or isinstance(producer, Opaque) or made.rank != layout.rank:
        return value
    graph.reroot(value, producer, roots)
    made.rank = rank
    lowering.to.counts[value] = lowering.axes(roots[0]) or 0
    lowering.to.rooted[value] = layout
    lowering.to.root_of[node] = value
    return _whole(lowering, node, value, layout)


def show(lowering: Lowering) -> None:
    """What is read in its moved form is a value as any other."""
    graph = lowering.graph
    for whole in lowering.to.moved:
        if graph.readers(whole) or whole in graph.pinned:
            graph.nodes[whole].inner = False
