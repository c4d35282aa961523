"""Recognise what joins tensors or takes them to pieces: concat, stack, split, slices, shuffles."""

from __future__ import annotations

from typing import Any

from torch import fx

from repfuse.frontends.torch import shuffles
from repfuse.frontends.torch.arguments import Handler, has_nodes, name_of, read, spatial_slices
from repfuse.frontends.torch.entries import Entry, Parts
from repfuse.frontends.torch.lowering import Lowering
from repfuse.graph import Concat, Sum, Value
from repfuse.operators import Pad, Select

__all__ = ["cat", "getitem", "reduce", "shuffle", "split", "stack"]


def _channel_cut(index: tuple[Any, ...], rank: int) -> slice | None:
    """The slice of the channels, where an index takes all of every other axis."""
    if not rank:  # the channels are the last axis, however many stand before it
        last = index[-1]
        return last if index[:-1] == (Ellipsis,) and isinstance(last, slice) else None
    if Ellipsis in index:
        place, rest = index.index(Ellipsis), rank + 3 - len(index)
        index = (*index[:place], *(slice(None),) * rest, *index[place + 1 :])
    others = (*index[:1], *index[2:])
    if not 2 <= len(index) <= rank + 2 or any(part != slice(None) for part in others):
        return None
    return index[1] if isinstance(index[1], slice) else None


def cat(lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Entry | None:
    pieces = args[0] if args else kwargs.get("tensors")
    axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    if not isinstance(pieces, tuple | list) or len(pieces) < 2:
        return None
    given = [read(lowering, node, piece) for piece in pieces]
    values = [value for value in given if value is not None]
    facts = [fact for value in values if (fact := lowering.known(value)) is not None]
    if len(facts) < len(pieces) or not _is_channel_axis(axis, facts[0][1]):
        return None
    return lowering.make(node, Concat(), tuple(values))


SIZES = ("chunks", "split_size", "split_size_or_sections")


def _is_channel_axis(axis: Any, rank: int) -> bool:
    """Axis 1 of batched data, or counted from the end."""
    return axis == -(rank + 1) or (axis == 1 and rank > 0)


def split(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """chunk and split along the channels: one selection per piece, made when it is taken."""
    given = {name: kwargs[name] for name in SIZES if name in kwargs}
    size = args[1] if len(args) > 1 else next(iter(given.values()), None)
    axis = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    value = read(lowering, node, args[0])
    known = lowering.known(value) if isinstance(value, int) else None
    if known is None or not isinstance(value, int) or not _is_channel_axis(axis, known[1]):
        return None
    channels, rank = known
    if name_of(node) == "chunk" and isinstance(size, int):
        size = -(-channels // size)
    if isinstance(size, int):
        size = [min(size, channels - begin) for begin in range(0, channels, size)]
    if not isinstance(size, tuple | list) or has_nodes(list(size)) or sum(size) != channels:
        return None
    lowering.memory.share(node, [args[0]])
    pieces, begin = [], 0
    for width in size:
        select = Select(tuple(range(begin, begin + width)), channels, rank)
        pieces.append(lowering.make(node, select, (value,)))
        lowering.graph.nodes[pieces[-1]].inner = True  # until it is taken
        begin += width
    return Parts(lowering.taken_apart(node, (value,)), tuple(pieces), stacked=False)


def getitem(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    entry = lowering.entries.get(args[0]) if isinstance(args[0], fx.Node) else None
    if isinstance(entry, Parts) and not entry.stacked and isinstance(args[1], int):
        value = entry.values[args[1]]
        assert value is not None
        lowering.to.node_of[value] = node
        lowering.graph.nodes[value].inner = False
        lowering.to.reads.setdefault(node, {})[args[0]] = entry.whole
        lowering.memory.share(node, [args[0]])
        return value
    value = read(lowering, node, args[0])
    known = lowering.known(value) if isinstance(value, int) else None
    index = args[1]
    if known is None or not isinstance(value, int) or not isinstance(index, tuple):
        return None
    channels, rank = known
    cut = _channel_cut(index, rank)
    if cut is None:
        return _cropped(lowering, node, value, spatial_slices(index, rank))
    if has_nodes([cut.start, cut.stop, cut.step]):
        return None
    lowering.memory.share(node, [args[0]])
    indices = tuple(range(channels)[cut])
    return lowering.make(node, Select(indices, channels, rank), (value,)) if indices else None


def _cropped(
    lowering: Lowering, node: fx.Node, value: Value, slices: list[slice] | None
) -> Entry | None:
    """A slice that leaves out so many positions at both ends of the spatial axes: a border of
    less than nothing."""
    padding = []
    for part in slices or ():
        low, high = part.start or 0, part.stop or 0
        if low < 0 or high > 0 or part.step not in (None, 1) or part.stop == 0:
            return None
        padding.append((-low, high))
    known = lowering.known(value)
    if not padding or known is None:
        return None
    lowering.memory.share(node, [node.all_input_nodes[0]])
    return lowering.make(node, Pad(known[0], tuple(padding)), (value,))


def shuffle(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    value = read(lowering, node, args[0])
    groups = args[1] if len(args) > 1 else kwargs.get("groups")
    return shuffles.shuffle(lowering, node, value, groups) if isinstance(value, int) else None


def stack(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    pieces = args[0] if args else kwargs.get("tensors")
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if axis != 0 or not isinstance(pieces, tuple | list):
        return None
    values = [read(lowering, node, piece) for piece in pieces]
    if not all(isinstance(value, int) for value in values):
        return None
    present = tuple(value for value in values if value is not None)
    return Parts(lowering.taken_apart(node, present), tuple(values), stacked=True)


def reduce(mean: bool) -> Handler:
    """The sum or mean over the new axis of a stack."""

    def handle(
        lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> Entry | None:
        entry = lowering.entries.get(args[0]) if isinstance(args[0], fx.Node) else None
        axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        if not isinstance(entry, Parts) or not entry.stacked or axis not in (0, (0,), [0]) or keep:
            return None
        lowering.to.reads.setdefault(node, {})[args[0]] = entry.whole
        values = tuple(value for value in entry.values if value is not None)
        if len(values) < 2:
            return None
        if mean:
            shares = [lowering.affine(node, value, 1.0 / len(values), 0.0) for value in values]
            values = tuple(share for share in shares if share is not None)
            if len(values) < len(shares):
                return None
            for share in values:
                lowering.graph.nodes[share].inner = True
        return lowering.make(node, Sum(), values)

    return handle
