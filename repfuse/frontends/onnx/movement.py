"""Follow where the elements of a tensor go, node by node, at a size of the input that one chooses.

Only nodes that move elements and that count positions are followed. Every slice must keep more the
longer its axis is, every count must start at 0: what is written then stands at a fixed distance
from one end of an axis, and is seen at any size above that distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.frontends.onnx.shapes import FLOATS

__all__ = ["MOVES", "Content", "Follower", "Found"]

ENDLESS = 2**31 - 1  # and above: no position, but the end of the axis
WRITTEN = -1
EXPANDED = ("Identity", "CastLike", "Cast", "Transpose", "Expand")


@dataclass(frozen=True)
class Content:
    """numbers: what was written. origin: the position in the tensor that one started with,
    WRITTEN where something was written."""

    numbers: np.ndarray
    origin: np.ndarray


Found: TypeAlias = Content | np.ndarray


@dataclass
class Follower:
    """What each tensor holds at one size; numbers that are expanded to any size are kept as they
    broadcast. reach: how far from an end of an axis something is looked at, by tensor; `furthest`
    is the largest of them."""

    lowering: Lowering
    found: dict[str, Found] = field(default_factory=dict)
    reach: dict[str, int] = field(default_factory=dict)
    furthest: int = 0

    def step(self, node: NodeView) -> bool:
        """Follow a node; False where it does anything else, or does not run at this size."""
        move = MOVES.get(node.op)
        if move is None or not node.single or not self.lowering.is_ours(node.index):
            return False
        try:
            made = move(self, node)
        except (ValueError, IndexError, TypeError):
            return False
        if made is None:
            return False
        self.found[node.output] = made
        return True

    def read(self, name: str) -> Found | None:
        """What a tensor holds, if that is known."""
        if name in self.found:
            return self.found[name]
        if name in self.lowering.constants:
            return self.lowering.constants.value(name)
        return self.expanded(name)

    def expanded(self, name: str) -> np.ndarray | None:
        """A constant that is expanded to a size which is not known, as it broadcasts."""
        path, makers = list[NodeView](), self.lowering.makers
        while name not in self.lowering.constants:
            if name not in makers:
                return None
            node = self.lowering.view(makers[name])
            if node.op not in EXPANDED or not self.lowering.is_ours(node.index):
                return None
            path.append(node)
            name = node.input(0)
        value = self.lowering.constants.value(name)
        for node in reversed(path):
            if node.op == "Transpose":
                value = value.transpose(_order(node, value.ndim))
            elif node.op == "Expand":
                kind = self.lowering.scope.types.get(node.output)
                if kind is None or kind.ndim is None or kind.ndim < value.ndim:
                    return None
                value = value.reshape((1,) * (kind.ndim - value.ndim) + value.shape)
            elif not _keeps_type(self.lowering, node):
                return None
        return value

    def whole(self, name: str) -> np.ndarray | None:
        """Whole numbers."""
        value = self.read(name)
        return value if isinstance(value, np.ndarray) and value.dtype.kind in "iu" else None

    def look(self, name: str, distance: int) -> None:
        self.reach[name] = distance
        self.furthest = max(self.furthest, distance)


def _order(node: NodeView, ndim: int) -> tuple[int, ...]:
    return tuple(node.attrs.get("perm", range(ndim)[::-1]))


def _keeps_type(lowering: Lowering, node: NodeView) -> bool:
    """Whether a cast between floats rounds nothing."""
    kinds = [lowering.scope.types.get(name) for name in (node.input(0), node.output)]
    if node.input(0) in lowering.constants:
        kinds[0] = lowering.constants.kind(node.input(0))
    elems = {kind.elem if kind is not None else 0 for kind in kinds}
    return len(elems) == 1 and elems <= FLOATS.keys()


def _same(follower: Follower, node: NodeView) -> Found | None:
    value = follower.read(node.input(0))
    is_cast = node.op != "Identity"
    if is_cast and not _keeps_type(follower.lowering, node):
        return None
    follower.look(node.output, follower.reach.get(node.input(0), 0))
    return value


def _transpose(follower: Follower, node: NodeView) -> Found | None:
    value = follower.read(node.input(0))
    follower.look(node.output, follower.reach.get(node.input(0), 0))
    if isinstance(value, Content):
        order = _order(node, value.origin.ndim)
        return Content(value.numbers.transpose(order), value.origin.transpose(order))
    return None if value is None else value.transpose(_order(node, value.ndim))


def _shape(follower: Follower, node: NodeView) -> Found | None:
    value = follower.found.get(node.input(0))
    if not isinstance(value, Content):
        return None
    follower.look(node.output, follower.reach.get(node.input(0), 0))
    part = slice(node.attrs.get("start"), node.attrs.get("end"))
    return np.array(value.origin.shape[part], np.int64)


def _gather(follower: Follower, node: NodeView) -> Found | None:
    """Some of the sizes of a shape."""
    sizes, which = follower.whole(node.input(0)), node.input(1)
    if sizes is None or sizes.ndim != 1 or which not in follower.lowering.constants:
        return None
    follower.look(node.output, follower.reach.get(node.input(0), 0))
    return np.asarray(sizes[follower.lowering.constants.value(which)])


def _range(follower: Follower, node: NodeView) -> Found | None:
    """All positions of an axis."""
    bounds = [follower.whole(name) for name in node.inputs]
    if any(bound is None or bound.ndim for bound in bounds):
        return None
    start, end, step = (int(bound) for bound in bounds if bound is not None)
    follower.look(node.output, follower.reach.get(node.input(1), 0))
    return np.arange(end) if (start, step) == (0, 1) else None


def _unsqueeze(follower: Follower, node: NodeView) -> Found | None:
    value = follower.whole(node.input(0))
    given = follower.whole(node.input(1)) if node.input(1) else np.array(node.attrs["axes"])
    if value is None or given is None:
        return None
    follower.look(node.output, follower.reach.get(node.input(0), 0))
    return np.expand_dims(value, tuple(int(axis) for axis in given.ravel()))


def _slice(follower: Follower, node: NodeView) -> Found | None:
    value, constants = follower.read(node.input(0)), follower.lowering.constants
    if value is None or not all(name in constants for name in node.inputs[1:] if name):
        return None
    parts = [constants.ints(name) if name else None for name in node.inputs[1:]]
    parts += [None] * (4 - len(parts))
    starts, ends, axes, steps = parts
    if starts is None or ends is None:
        return None
    ndim = value.origin.ndim if isinstance(value, Content) else value.ndim
    cut, distance = [slice(None)] * ndim, 0
    if set(steps or ()) - {1}:
        return None
    for axis, start, end in zip(axes or range(len(starts)), starts, ends, strict=True):
        if start < 0 <= end < ENDLESS:
            return None  # of a longer axis it keeps less
        cut[axis] = slice(start, end)
        distance = max([distance, *(abs(p) for p in (start, end) if abs(p) < ENDLESS)])
    follower.look(node.output, follower.reach.get(node.input(0), 0) + distance)
    if isinstance(value, Content):
        return Content(value.numbers[tuple(cut)], value.origin[tuple(cut)])
    return value[tuple(cut)]


def _scatter(follower: Follower, node: NodeView) -> Found | None:
    data, updates = follower.read(node.input(0)), follower.read(node.input(2))
    places = follower.whole(node.input(1))
    if node.attrs.get("reduction", "none") != "none" or not isinstance(data, Content):
        return None
    if places is None or updates is None or not places.ndim:
        return None
    inside = follower.reach.get(node.input(0), 0)
    distance = follower.reach.get(node.input(1), 0)
    if node.input(1) in follower.lowering.constants:
        distance = int(np.abs(places).max(initial=0))
    follower.look(node.output, max(inside + distance, follower.reach.get(node.input(2), 0)))
    follower.reach[node.output] = inside
    where = tuple(np.moveaxis(places, -1, 0))
    numbers, origin = data.numbers.copy(), data.origin.copy()
    if isinstance(updates, Content):
        numbers[where], origin[where] = updates.numbers, updates.origin
    else:
        numbers[where], origin[where] = updates, WRITTEN
    return Content(numbers, origin)


MOVES: dict[str, Callable[[Follower, NodeView], Found | None]] = {
    "Cast": _same,
    "CastLike": _same,
    "Gather": _gather,
    "Identity": _same,
    "Range": _range,
    "ScatterND": _scatter,
    "Shape": _shape,
    "Slice": _slice,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
