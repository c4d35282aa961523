"""Recognise borders that are filled by assignment: padded by zeros, then one side after the other.

    y = pad(x, [1, 1, 1, 1]); y[:, :, :1, :] = b; y[:, :, -1:, :] = b; ...

Once all sides hold the same numbers, the value is one border of these numbers. Until then it is
something that nobody looks into.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from repfuse.arrays import Array, same
from repfuse.frontends.torch.arguments import per_channel, read, spatial_slices
from repfuse.frontends.torch.entries import Entry
from repfuse.frontends.torch.lowering import Lowering
from repfuse.graph import Value
from repfuse.operators import Pad

__all__ = ["Filling", "fill", "fills_only"]


@dataclass(frozen=True)
class Filling:
    """A border that is being filled: the padded value, the sides that are done, what made them."""

    padded: Value
    sides: dict[tuple[int, int], Array]
    nodes: tuple[fx.Node, ...]
    partial: tuple[Value, ...]


def fill(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """target[index] = numbers."""
    value = read(lowering, node, args[0])
    filling = _filling(lowering, value)
    if value is None or filling is None or len(args) != 3:
        return None
    graph = lowering.graph
    pad = graph.nodes[filling.padded].producer
    assert isinstance(pad, Pad)
    side = _side(args[1], pad)
    number = per_channel(lowering, args[2], filling.padded)
    if side is None or number is None:
        return None
    sides = {**filling.sides, side: number}
    inside = {filling.padded, *filling.partial}
    others = [reader for made in inside for reader in graph.readers(made) if reader not in inside]
    if others or not set(graph.pinned).isdisjoint(inside):
        return None  # somebody reads it half done
    wanted = {
        (axis, end) for axis, pair in enumerate(pad.padding) for end in (0, 1) if pair[end] > 0
    }
    if wanted == set(sides) and all(same(number, other) for other in sides.values()):
        (source,) = graph.operands(filling.padded)
        lowering.to.built_on[node] = filling.nodes
        made = lowering.make(node, replace(pad, value=number), (source,))
        return lowering.changed_in_place(node, made)
    made = lowering.taken_apart(node, (filling.padded,))
    graph.nodes[made].channels, graph.nodes[made].rank = pad.channels, pad.rank
    nodes, partial = (*filling.nodes, node), (*filling.partial, made)
    lowering.fillings[made] = Filling(filling.padded, sides, nodes, partial)
    return lowering.changed_in_place(node, made)


def _filling(lowering: Lowering, value: Value | None) -> Filling | None:
    """What is done of the border; nothing yet where zeros are."""
    if value is None or value in lowering.fillings:
        return None if value is None else lowering.fillings[value]
    pad = lowering.graph.nodes[value].producer
    if not isinstance(pad, Pad) or pad.border != "zeros" or pad.value is not None:
        return None
    return Filling(value, {}, (lowering.to.node_of[value],), ())


def _side(index: Any, pad: Pad) -> tuple[int, int] | None:
    """The axis and the end of it, if the index is all of the border there."""
    axes = spatial_slices(index, pad.rank)
    cut = [(axis, part) for axis, part in enumerate(axes or ()) if part != slice(None)]
    if len(cut) != 1:
        return None
    axis, part = cut[0]
    low, high = pad.padding[axis]
    if part.step not in (None, 1):
        return None
    if part.start in (None, 0) and part.stop == low > 0:
        return axis, 0
    return (axis, 1) if part.start == -high < 0 and part.stop is None else None


def fills_only(node: fx.Node, lowered_constant: Any) -> list[fx.Node] | None:
    """The assignments that a constant is read for; None where something else reads it as well."""
    found: list[fx.Node] = []
    for user in node.users:
        if user.target is operator.setitem:
            if node not in user.args[2:]:
                return None
            found.append(user)
        elif lowered_constant(user):
            more = fills_only(user, lowered_constant)
            if more is None:
                return None
            found += more
        else:
            return None
    return found
