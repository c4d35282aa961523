"""The arguments of recorded calls: values, constants, numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from repfuse.arrays import Array
from repfuse.frontends.torch.entries import Entry
from repfuse.frontends.torch.lowering import Lowering
from repfuse.graph import Value

__all__ = [
    "Handler",
    "array_of",
    "has_nodes",
    "is_number",
    "name_of",
    "per_channel",
    "read",
    "spatial_slices",
]


Handler = Callable[["Lowering", fx.Node, list[Any], dict[str, Any]], "Entry | None"]


def name_of(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    home = getattr(node.target, "__module__", None) or ""
    known = home.startswith(("torch", "_operator", "operator", "builtins")) or home == ""
    return getattr(node.target, "__name__", "") if known else ""


def read(lowering: Lowering, node: fx.Node, argument: Any) -> Value | None:
    return lowering.value(argument, node) if isinstance(argument, fx.Node) else None


def array_of(lowering: Lowering, argument: Any) -> Array | None:
    """A constant argument as an array."""
    if isinstance(argument, fx.Node) and lowering.constants.is_constant(argument):
        return lowering.constants.array(argument)
    return None


def per_channel(lowering: Lowering, argument: Any, value: Value) -> Array | None:
    """A number or a constant that broadcasts along the channels only, as (channels,)."""
    known = lowering.known(value)
    if known is None:
        return None
    channels, rank = known
    if is_number(argument):
        return Array.full((channels,), float(argument))
    array = array_of(lowering, argument)
    if array is None or lowering.widens(value, argument, array):
        return None
    shape = array.shape
    if array.size == 1 and len(shape) <= rank + 2:
        return array.apply((channels,), lambda a: a.reshape(1).repeat(channels))
    if not rank and len(shape) > 2 and not _has_axes(lowering, value, len(shape)):
        return None  # the result may have more axes than the value
    axis = len(shape) - rank - 1
    if axis < 0 or axis > (1 if rank else 2) or shape[axis] != channels:
        return None
    return array.reshape(channels) if array.size == channels else None


def _has_axes(lowering: Lowering, value: Value, count: int) -> bool:
    """Whether the value is known to have at least so many axes."""
    fact = lowering.facts.get(lowering.to.node_of[value])
    return fact is not None and (fact.axes or 0) >= count


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def has_nodes(values: list[Any]) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(tuple(values), lambda node: found.append(node))
    return bool(found)


def spatial_slices(index: Any, rank: int) -> list[slice] | None:
    """The slices of the spatial axes of batched data, where batch and channels are whole."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if parts.count(Ellipsis) == 1:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (rank + 3 - len(parts))
    parts += [slice(None)] * (rank + 2 - len(parts))
    if len(parts) != rank + 2 or not all(isinstance(part, slice) for part in parts):
        return None
    numbers = [n for part in parts for n in (part.start, part.stop, part.step)]
    if has_nodes(numbers):
        return None
    return parts[2:] if parts[:2] == [slice(None)] * 2 else None
