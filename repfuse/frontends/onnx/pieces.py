"""Recognise concats and selections of channels: Concat, Split, Slice, Gather."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from repfuse.frontends.onnx import arithmetic
from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.graph import Concat, Value
from repfuse.operators import Pad, Padding, Select

__all__ = ["concat", "gather", "slice_", "split", "split_to_sequence"]

ENDLESS = 2**31 - 1


def concat(lowering: Lowering, node: NodeView) -> str | bool:
    """Values side by side along the channels."""
    if not all(lowering.is_value(name) for name in node.inputs):
        return False
    if not all(
        name in lowering.to.value_of or lowering.producer(name) is None for name in node.inputs
    ):
        return True  # a stack whose parts wait for what reduces it
    values = tuple(lowering.value(name) for name in node.inputs)
    axis = int(node.attrs.get("axis", 1))
    if not all(lowering.is_float(v) and lowering.channel_axis(v, axis) for v in values):
        return False
    if len({known[1] for v in values if (known := lowering.known(v))}) != 1:
        return False
    lowering.make(node, node.output, Concat(), values)
    return True


def split(lowering: Lowering, node: NodeView) -> str | bool:
    """Every output is a range of the channels; the sizes are an attribute before opset 13."""
    value = lowering.value(node.input(0))
    known = lowering.known(value)
    axis = int(node.attrs.get("axis", 0))
    if known is None or not lowering.is_float(value) or not lowering.channel_axis(value, axis):
        return False
    sizes: Any = node.attrs.get("split")
    if node.input(1):
        sizes = None if lowering.is_value(node.input(1)) else lowering.constants.ints(node.input(1))
        if sizes is None:
            return False
    if sizes is None:
        share = -(-known[0] // len(node.outputs))
        last = known[0] - share * (len(node.outputs) - 1)
        sizes = [share] * (len(node.outputs) - 1) + [last]
    if len(sizes) != len(node.outputs) or sum(sizes) != known[0] or min(sizes) < 1:
        return False
    begin = 0
    for size, name in zip(sizes, node.outputs, strict=True):
        if name:
            _select(lowering, node, value, range(begin, begin + size), name)
        begin += size
    return True


def split_to_sequence(lowering: Lowering, node: NodeView) -> str | bool:
    """The same as a sequence, if each of its readers takes one part out of it: as the dynamo
    exporter writes a split."""
    value, constants = lowering.value(node.input(0)), lowering.constants
    known, sizes = lowering.known(value), node.input(1)
    axis = int(node.attrs.get("axis", 0))
    if known is None or not lowering.is_float(value) or not lowering.channel_axis(value, axis):
        return False
    given = constants.ints(sizes) if sizes in constants else None
    if not given or min(given) < 1:
        return False
    if constants.value(sizes).ndim == 0:
        whole, rest = divmod(known[0], given[0])
        given = given * whole + ([rest] if rest else [])
    readers = [lowering.view(index) for index in lowering.readers.get(node.output, ())]
    places = [_place(lowering, reader, node.output) for reader in readers]
    if sum(given) != known[0] or not readers or node.output in lowering.scope.outputs:
        return False
    if any(place is None or not -len(given) <= place < len(given) for place in places):
        return False
    ends = list(accumulate(given))
    for reader, place in zip(readers, places, strict=True):
        end = ends[place or 0]
        chosen = Select(tuple(range(end - given[place or 0], end)), *known)
        lowering.apply(reader, chosen, value, nodes=(node.index, reader.index))
        lowering.done.add(reader.index)
    lowering.to.hidden.add(node.output)
    return True


def _place(lowering: Lowering, node: NodeView, sequence: str) -> int | None:
    """Which part of a sequence a node takes, if that is all it does."""
    if node.op != "SequenceAt" or not lowering.is_ours(node.index) or node.input(0) != sequence:
        return None
    places = lowering.constants.ints(node.input(1)) if node.input(1) in lowering.constants else None
    return places[0] if places is not None and len(places) == 1 else None


def slice_(lowering: Lowering, node: NodeView) -> str | bool:
    """A slice of the channels and of nothing else, or one that crops the spatial axes."""
    value = lowering.value(node.input(0))
    known, ndim = lowering.known(value), lowering.ndim(value)
    starts, ends = _numbers(lowering, node, 1, "starts"), _numbers(lowering, node, 2, "ends")
    if known is None or ndim is None or starts is None or ends is None:
        return False
    if not lowering.is_float(value):
        return False
    axes = _numbers(lowering, node, 3, "axes") or list(range(len(starts)))
    steps = _numbers(lowering, node, 4, "steps") or [1] * len(starts)
    if any(lowering.is_value(name) for name in node.inputs[1:]):
        return False
    if not len(starts) == len(ends) == len(axes) == len(steps):
        return False
    cuts = [
        (start, end, axis, step)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
        if (start, step) != (0, 1) or end < ENDLESS
    ]
    if not cuts:  # all of every axis
        return arithmetic.identity(lowering, node)
    starts, ends, axes, steps = (list(numbers) for numbers in zip(*cuts, strict=True))
    if crop := _crop(starts, ends, [axis % ndim - ndim + known[1] for axis in axes], known[1]):
        whole = set(steps) == {1}
        return whole and lowering.apply(node, Pad(known[0], crop), value)
    if len(starts) != 1:
        return False
    if not lowering.channel_axis(value, axes[0]):
        return False
    indices = range(known[0])[slice(starts[0], ends[0] if ends[0] > -ENDLESS else None, steps[0])]
    if not indices:
        return False
    _select(lowering, node, value, indices, node.output)
    return True


def _crop(starts: list[int], ends: list[int], axes: list[int], rank: int) -> Padding | None:
    """What a slice leaves out at both ends of the spatial axes, as a border of less than nothing;
    axes: counted from the first spatial one."""
    sides = dict.fromkeys(range(rank), (0, 0))
    for axis, start, end in zip(axes, starts, ends, strict=True):
        high = 0 if end >= ENDLESS else end
        if axis not in sides or start < 0 or high > 0 or end == 0:
            return None
        sides[axis] = (-start, high)
    return tuple(sides.values()) if rank else None


def gather(lowering: Lowering, node: NodeView) -> str | bool:
    """The channels that a constant vector names."""
    data, indices = node.input(0), node.input(1)
    if not lowering.is_value(data) or lowering.is_value(indices):
        return False
    value = lowering.value(data)
    known, shape = lowering.known(value), lowering.constants.kind(indices).static
    chosen = lowering.constants.ints(indices)
    if known is None or shape is None or len(shape) != 1 or not chosen:
        return False
    if not lowering.is_float(value):
        return False
    if not lowering.channel_axis(value, int(node.attrs.get("axis", 0))):
        return False
    if any(not -known[0] <= index < known[0] for index in chosen):
        return False
    _select(lowering, node, value, [index % known[0] for index in chosen], node.output)
    return True


def _select(lowering: Lowering, node: NodeView, value: Value, indices: Any, name: str) -> None:
    known = lowering.known(value)
    assert known is not None
    lowering.apply(node, Select(tuple(indices), *known), value, name)


def _numbers(lowering: Lowering, node: NodeView, slot: int, attribute: str) -> list[int] | None:
    """Whole numbers that older opsets keep in an attribute and newer ones in an input."""
    if attribute in node.attrs:
        return [int(number) for number in node.attrs[attribute]]
    name = node.input(slot)
    return lowering.constants.ints(name) if name in lowering.constants else None
