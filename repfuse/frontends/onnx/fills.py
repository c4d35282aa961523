"""Recognise borders that are filled by ScatterND: padded by zeros, then one side after the other.

What an exporter makes of `y[:, :, :1, :] = b` holds the positions as numbers, for one size of the
input, or counts them by the shape at hand. So the nodes are followed on tensors of that size, or of
several: where they leave everything inside as it was and the same number per channel around it,
all of them are one Pad.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from repfuse.arrays import Array
from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.frontends.onnx.movement import MOVES, WRITTEN, Content, Follower, Found
from repfuse.graph import Value
from repfuse.operators import Pad

__all__ = ["border"]

LARGEST = 2**24  # elements
NODES = 4096


def border(lowering: Lowering, node: NodeView, pad: Pad, value: Value) -> bool:
    """A Pad, and what fills its border, on a value."""
    found = _filled(lowering, node, pad)
    nodes = None if found is None else _nodes(lowering, node, found[0])
    if found is None or nodes is None:
        return lowering.apply(node, pad, value)
    last, number = found
    wide = replace(pad, value=Array.of(number))
    if not lowering.apply(last, wide, value, nodes=(*sorted(nodes - {last.index}), last.index)):
        return False
    if _static(lowering, node) is not None:
        lowering.to.fixed.add(lowering.to.value_of[last.output])
    else:
        lowering.to.expanded.update(_expanded(lowering, nodes))
    lowering.done.update(nodes)
    lowering.to.hidden.update(
        name for index in nodes for name in lowering.scope.protos[index].output
    )
    lowering.to.hidden.discard(last.output)
    return True


def _filled(lowering: Lowering, node: NodeView, pad: Pad) -> tuple[NodeView, np.ndarray] | None:
    """The last node after which the border is one number per channel, and these numbers."""
    cone = _cone(lowering, node)
    if pad.border != "zeros" or all(view.op != "ScatterND" for view in cone):
        return None
    numbers: dict[int, np.ndarray] | None = None
    for shape, follower in _runs(lowering, node, pad):
        if math.prod(shape) > LARGEST:
            return None
        start = _padded(shape, pad)
        follower.found[node.output] = start
        here: dict[int, np.ndarray] = {}
        for view in cone:
            if view.index == node.index or not follower.step(view):
                continue
            content = follower.found[view.output]
            if (
                isinstance(content, Content)
                and (number := _number(content, start, pad)) is not None
            ):
                here[view.index] = number
        before = here if numbers is None else numbers
        numbers = {i: n for i, n in here.items() if i in before and (before[i] == n).all()}
        if not numbers:
            return None
    assert numbers is not None
    last = max(numbers)
    return lowering.view(last), numbers[last]


def _runs(
    lowering: Lowering, node: NodeView, pad: Pad
) -> Iterator[tuple[tuple[int, ...], Follower]]:
    """Shapes of the padded tensor to try: the only one it has; or the smallest, some that are no
    squares, and one in which everything that is looked at from an end is far from the other."""
    follower = Follower(lowering)
    if (static := _static(lowering, node)) is not None:
        yield static, follower
        return
    yield _shape(pad, 1, 1, 0), follower
    for batch, size, step in ((2, 2, 1), (3, 4, -1), (2, 3, 2)):
        yield _shape(pad, batch, size, step), Follower(lowering)
    far = follower.furthest
    yield _shape(pad, far + 2, far + 3, 1), Follower(lowering)


def _shape(pad: Pad, batch: int, size: int, step: int) -> tuple[int, ...]:
    """A shape with so many positions inside of the border."""
    around = [max(low, 0) + max(high, 0) for low, high in pad.padding]
    return (batch, pad.channels, *(size + step * i + more for i, more in enumerate(around)))


def _static(lowering: Lowering, node: NodeView) -> tuple[int, ...] | None:
    kind = lowering.scope.types.get(node.output)
    return None if kind is None else kind.static


def _inside(shape: tuple[int, ...], pad: Pad) -> np.ndarray:
    """A mask of the positions that no border covers."""
    mask = np.zeros(shape[2:], bool)
    parts = zip(shape[2:], pad.padding, strict=True)
    mask[tuple(slice(max(low, 0), size - max(high, 0)) for size, (low, high) in parts)] = True
    return mask


def _padded(shape: tuple[int, ...], pad: Pad) -> Content:
    origin = np.arange(math.prod(shape)).reshape(shape)
    numbers = np.zeros(shape)
    if pad.value is not None:
        numbers += pad.value.numpy().reshape(-1, *[1] * pad.rank)
    origin[:, :, ~_inside(shape, pad)] = WRITTEN
    return Content(numbers, origin)


def _number(content: Found, start: Content, pad: Pad) -> np.ndarray | None:
    """The border's number per channel, where everything else stands at its place."""
    if not isinstance(content, Content):
        return None
    if content.origin.shape != start.origin.shape or (content.origin != start.origin).any():
        return None
    around = ~_inside(start.origin.shape, pad)
    if not around.any():
        return None
    numbers = content.numbers[:, :, around].swapaxes(0, 1).reshape(pad.channels, -1)
    number: np.ndarray = numbers[:, 0]
    return number if (numbers == number[:, None]).all() else None


def _cone(lowering: Lowering, node: NodeView) -> list[NodeView]:
    """The nodes that move what a node makes, or ask for its shape, in the order of the file."""

    def follows(view: NodeView) -> bool:
        first = view.index == node.index
        return first or (view.op in MOVES and not _is_constant(lowering, view))

    return lowering.downstream(node, follows, NODES)


def _is_constant(lowering: Lowering, node: NodeView) -> bool:
    return all(name in lowering.constants for name in node.outputs if name)


def _nodes(lowering: Lowering, node: NodeView, last: NodeView) -> set[int] | None:
    """All nodes that belong to a border; None where anything else reads what is in between, or
    constants that are made of its shape."""
    after = {view.index for view in _cone(lowering, last)} - {last.index}
    nodes = {view.index for view in _cone(lowering, node)} - after
    return lowering.enclosed(
        nodes, {last.output}, lambda index: _is_constant(lowering, lowering.view(index))
    )


def _expanded(lowering: Lowering, nodes: set[int]) -> dict[str, np.ndarray]:
    """What the nodes read from outside: constants, expanded to the size at hand."""
    made = {name for index in nodes for name in lowering.scope.protos[index].output}
    reads = {name for index in nodes for name in lowering.scope.protos[index].input if name}
    follower = Follower(lowering)
    outside = (name for name in reads - made if name not in lowering.constants)
    values = {name: follower.expanded(name) for name in outside}
    return {name: value for name, value in values.items() if value is not None}
