"""Recognise channel shuffles: a view that splits the channel axis, a transpose, a view back.

The sizes of a view are mostly computed from the tensor's own shape. They are followed here as
far as a shuffle needs it: whole numbers, and "the size of axis i of that value".
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from torch import fx

from repfuse.frontends.torch.entries import Channels, Entry
from repfuse.frontends.torch.lowering import Lowering
from repfuse.graph import Value
from repfuse.operators import Select

__all__ = ["flatten", "permute", "shuffle", "size_of", "symbol_of", "transpose", "view"]

Size: TypeAlias = int | tuple[Value, int]
ARITHMETIC: dict[Any, Callable[[int, int], int]] = {
    operator.floordiv: operator.floordiv,
    operator.mul: operator.mul,
    operator.add: operator.add,
    operator.sub: operator.sub,
}


def shuffle(lowering: Lowering, node: fx.Node, value: Value, groups: Any) -> Entry | None:
    """torch's own channel shuffle: (groups, channels / groups) transposed."""
    known = lowering.known(value)
    if known is None or not isinstance(groups, int) or known[0] % groups or not known[1]:
        return None
    order = np.arange(known[0]).reshape(groups, -1).T
    return lowering.make(node, Select(tuple(order.ravel().tolist()), *known), (value,))


def view(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """view and reshape: the channel axis split into several, or these joined again."""
    shape = args[1:] if len(args) > 1 else [kwargs.get("shape", kwargs.get("size"))]
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = list(shape[0])
    entry, value = _current(lowering, args)
    known = None if value is None else lowering.known(value)
    if value is None or known is None or not known[1]:
        return None
    channels, rank = known
    sizes = [_size(lowering, part) for part in shape]
    split = sizes[1 : len(sizes) - rank]
    others = [sizes[0], *sizes[len(sizes) - rank :]] if len(sizes) > rank + 1 else []
    axes = [0, *range(2, rank + 2)]
    fits = bool(others) and sizes.count(-1) <= 1
    fits &= all(size in (-1, (value, axis)) for size, axis in zip(others, axes, strict=False))
    factors = _factors(split, channels) if fits else None
    if factors is None:
        return None
    index = np.arange(channels) if entry is None else entry.index.ravel()
    return _rearranged(lowering, node, args[0], value, index.reshape(factors))


def transpose(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """Two of the axes that hold the channels change places."""
    names = ("dim0", "dim1")
    given = dict(zip(names, args[1:], strict=False)) | kwargs
    entry, value = _current(lowering, args)
    if entry is None or value is None or len(given) != 2:
        return None
    first, second = given.values()
    inside = range(1, entry.index.ndim + 1)
    if first not in inside or second not in inside:
        return None
    index = entry.index.swapaxes(first - 1, second - 1)
    return _rearranged(lowering, node, args[0], value, index)


def permute(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """A permutation of all axes that moves those of the channels only."""
    order = args[1:] or [kwargs.get("dims")]
    order = list(order[0]) if isinstance(order[0], tuple | list) else order
    entry, value = _current(lowering, args)
    known = None if value is None else lowering.known(value)
    if entry is None or value is None or known is None:
        return None
    count = entry.index.ndim
    moved, total = order[1 : count + 1], count + 1 + known[1]
    if [0, *sorted(moved, key=str), *order[count + 1 :]] != list(range(total)):
        return None
    index = entry.index.transpose([axis - 1 for axis in moved])
    return _rearranged(lowering, node, args[0], value, index)


def flatten(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """All axes that hold the channels become one again."""
    given = dict(zip(("start_dim", "end_dim"), args[1:], strict=False)) | kwargs
    entry, value = _current(lowering, args)
    if entry is None or value is None:
        return None
    if (given.get("start_dim"), given.get("end_dim")) != (1, entry.index.ndim):
        return None
    return _rearranged(lowering, node, args[0], value, entry.index.ravel())


def _current(lowering: Lowering, args: list[Any]) -> tuple[Any, Value | None]:
    """The rearranged channels that are read, if they are, and the value they belong to."""
    entry = lowering.entries.get(args[0]) if isinstance(args[0], fx.Node) else None
    if isinstance(entry, Channels):
        return entry, entry.source
    return None, entry if isinstance(entry, int) else None


def _rearranged(
    lowering: Lowering, node: fx.Node, read: fx.Node, value: Value, index: np.ndarray
) -> Entry:
    """The channels in this order: a selection, or on more than one axis something in between."""
    lowering.value(read, node)
    lowering.memory.share(node, [read])
    if index.ndim > 1:
        return Channels(lowering.taken_apart(node, (value,)), value, index)
    known = lowering.known(value)
    assert known is not None
    return lowering.make(node, Select(tuple(index.tolist()), *known), (value,))


def _factors(split: list[Size | None], channels: int) -> list[int] | None:
    """The axes that the channels are split into, at most one of them given as -1."""
    if not split or not all(isinstance(size, int) for size in split):
        return None
    sizes = [size for size in split if isinstance(size, int)]
    rest = int(np.prod([size for size in sizes if size != -1]))
    if rest <= 0 or channels % rest:
        return None
    factors = [channels // rest if size == -1 else size for size in sizes]
    return factors if int(np.prod(factors)) == channels else None


def size_of(lowering: Lowering, argument: Any) -> Any:
    """An argument with the numbers filled in that shapes tell: groups=x.shape[1]."""
    argument = lowering.constants.literal(argument)
    found = _size(lowering, argument) if isinstance(argument, fx.Node) else None
    return found if isinstance(found, int) else argument


def symbol_of(lowering: Lowering, part: Any) -> Size | None:
    """What a size of a view is: a number, or an axis of a value."""
    return _size(lowering, lowering.constants.literal(part))


def _size(lowering: Lowering, part: Any) -> Size | None:
    """What a size of a view is: a number, or an axis of a value."""
    if isinstance(part, int):
        return part
    if not isinstance(part, fx.Node):
        return None
    args: list[Any] = list(part.args)
    if part.target is int and len(args) == 1:
        return _size(lowering, args[0])
    if part.target in ARITHMETIC and len(args) == 2:
        left, right = (_size(lowering, arg) for arg in args)
        if isinstance(left, int) and isinstance(right, int) and right:
            return ARITHMETIC[part.target](left, right)
        return None
    shape: Any = part
    axis: Any = args[1] if len(args) > 1 else part.kwargs.get("dim")
    if part.target is operator.getitem:
        shape = args[0]
    if shape.target is operator.getitem and isinstance(shape.args[1], slice):
        shape, cut = shape.args  # the end of a shape: x.shape[-2:]
        if cut.stop is not None or cut.step is not None or not isinstance(cut.start, int):
            return None
        inside = isinstance(axis, int) and cut.start < 0 <= axis < -cut.start
        axis = cut.start + axis if inside else None
    whole = shape.op == "call_method" and shape.target == "size"
    whole |= shape.target is getattr and shape.args[1] == "shape"
    if not whole or not isinstance(axis, int):
        return None
    return _axis(lowering, shape.args[0], axis)


def _axis(lowering: Lowering, tensor: Any, axis: int) -> Size | None:
    value = lowering.entries.get(tensor)
    known = lowering.known(value) if isinstance(value, int) else None
    if known is None or not isinstance(value, int):
        return None
    count = lowering.axes(value)
    if count is None:  # of tokens: the last one holds the channels
        return known[0] if axis == -1 else None
    axis = axis + count if axis < 0 else axis
    return known[0] if axis == count - known[1] - 1 else (value, axis)
