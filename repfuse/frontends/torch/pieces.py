"""Recognise what joins tensors or takes them to pieces: concat, stack, split, slices, shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch import fx

from repfuse.frontends.torch import shuffles
from repfuse.frontends.torch.arguments import Handler, has_nodes, name_of, read, spatial_slices
from repfuse.frontends.torch.entries import Entry, Parts
from repfuse.frontends.torch.lowering import Lowering
from repfuse.graph import Concat, Sum, Value
from repfuse.operators import Pad, Select

__all__ = ["cat", "flip", "getitem", "narrow", "reduce", "shuffle", "split", "stack"]


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


def _listed_channels(index: tuple[Any, ...], rank: int) -> list[int] | None:
    """The channels that a list names, x[:, [2, 0, 1]], where every other axis is whole."""
    others = (*index[:1], *index[2:])
    if not rank or not 2 <= len(index) <= rank + 2 or any(part != slice(None) for part in others):
        return None
    numbers = index[1]
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        return None
    return numbers or None


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


SIZES = (
    "chunks", "split_size", "split_size_or_sections", "indices_or_sections", "sections", "indices",
)  # fmt: skip


def _is_channel_axis(axis: Any, rank: int) -> bool:
    """Axis 1 of batched data, or counted from the end."""
    return axis == -(rank + 1) or (axis == 1 and rank > 0)


def split(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """chunk, split, tensor_split along the channels: one selection per piece, made when taken."""
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
    if name_of(node) == "tensor_split":
        size = _sizes(size, channels)
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


def _sizes(given: Any, channels: int) -> list[int] | None:
    """How tensor_split cuts: into so many pieces, the first ones larger by one, or at places."""
    if isinstance(given, int) and 0 < given <= channels:
        return [len(part) for part in np.array_split(range(channels), given)]
    if not isinstance(given, tuple | list) or has_nodes(list(given)):
        return None
    places = [0, *given, channels]
    return [high - low for low, high in pairwise(places)] if places == sorted(places) else None


def narrow(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """The channels from one on, so many."""
    given = dict(zip(("dim", "start", "length"), args[1:], strict=False)) | kwargs
    if len(given) != 3 or has_nodes(list(given.values())):
        return None
    begin, width = given["start"], given["length"]
    lowering.memory.share(node, node.all_input_nodes)
    return _selected(lowering, node, args[0], given["dim"], range(begin, begin + width))


def flip(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """The channels, and no other axis, in reverse order."""
    axes = args[1:] if len(args) > 1 else [kwargs.get("dims")]
    axes = list(axes[0]) if isinstance(axes[0], tuple | list) else axes
    value = read(lowering, node, args[0])
    known = lowering.known(value) if isinstance(value, int) else None
    if known is None or len(axes) != 1:
        return None
    return _selected(lowering, node, args[0], axes[0], range(known[0])[::-1])


def _selected(
    lowering: Lowering, node: fx.Node, source: Any, axis: Any, indices: Sequence[int]
) -> Entry | None:
    value = read(lowering, node, source)
    known = lowering.known(value) if isinstance(value, int) else None
    if known is None or not isinstance(value, int) or not _is_channel_axis(axis, known[1]):
        return None
    if not indices or not all(0 <= index < known[0] for index in indices):
        return None
    return lowering.make(node, Select(tuple(indices), *known), (value,))


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
    chosen = _listed_channels(index, rank)
    if chosen is not None:
        listed = [channel % channels for channel in chosen if -channels <= channel < channels]
        whole = len(listed) == len(chosen)  # copied, where a slice is a view
        return lowering.make(node, Select(tuple(listed), *known), (value,)) if whole else None
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
    if not isinstance(axis, int) or not isinstance(pieces, tuple | list):
        return None
    values = [read(lowering, node, piece) for piece in pieces]
    if not all(isinstance(value, int) for value in values):
        return None
    present = tuple(value for value in values if value is not None)
    return Parts(lowering.taken_apart(node, present), tuple(values), stacked=True, axis=axis)


def reduce(mean: bool) -> Handler:
    """The sum or mean over the new axis of a stack."""

    def handle(
        lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> Entry | None:
        entry = lowering.entries.get(args[0]) if isinstance(args[0], fx.Node) else None
        axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        if not isinstance(entry, Parts) or not entry.stacked or keep:
            return None
        if axis not in (entry.axis, (entry.axis,), [entry.axis]):
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
