"""Recognise channel shuffles: a Reshape that splits the channels, a Transpose, a Reshape back.

What a Reshape does hangs on sizes, which files compute in many ways. So the positions of all
elements are followed, at each of the sizes for which all shapes are inferred: what comes out must
be the same choice of whole channels every time.
"""

from __future__ import annotations

import math

import numpy as np

from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.frontends.onnx.sized import Inferred
from repfuse.graph import Value
from repfuse.operators import Select

__all__ = ["reshape"]

LARGEST = 2**24  # elements
NODES = 64
MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Gather", "Identity")


def reshape(lowering: Lowering, node: NodeView) -> str | bool:
    """A Reshape, and the nodes after it, of which some give whole channels of its input."""
    value = lowering.value(node.input(0))
    known, ndim = lowering.known(value), lowering.ndim(value)
    if (
        value in lowering.to.moved
        or known is None
        or not known[1]
        or ndim != known[1] + 2
        or not lowering.is_float(value)
    ):
        return False
    cone = _cone(lowering, node)
    if not any(view.op == "Transpose" for view in cone):
        return False
    draws = lowering.at_sizes()
    seen = [_chosen(lowering, cone, node.input(0), shapes, known[0]) for shapes in draws]
    runs = [found for found in seen if found is not None]
    if len(runs) < min(2, len(draws)) or not runs:
        return False
    same = {i: runs[0][i] for i in runs[0] if all(run.get(i) == runs[0][i] for run in runs)}
    return bool(same) and _make(lowering, cone, value, same)


def _cone(lowering: Lowering, node: NodeView) -> list[NodeView]:
    """The nodes that move what a node makes, in the order of the file."""

    def follows(view: NodeView) -> bool:
        return view.op in MOVES and lowering.is_ours(view.index) and view.single

    return lowering.downstream(node, follows, NODES)


def _chosen(
    lowering: Lowering, cone: list[NodeView], source: str, shapes: Inferred, channels: int
) -> dict[int, tuple[int, ...]] | None:
    """The channels that each node gives, of those that give whole channels of the source; None
    where the shape of the source is not known."""
    shape = _static(shapes, source)
    if shape is None or math.prod(shape) > LARGEST:
        return None
    start = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    positions, found = {source: start}, {}
    for view in cone:
        moved = _moved(lowering, view, positions.get(view.input(0)), shapes)
        if moved is None:
            continue
        positions[view.output] = moved
        if moved.ndim == start.ndim and moved.size:
            which = moved[:1].reshape(moved.shape[1], -1)[:, 0] // start[0, 0].size % channels
            if moved.shape == start[:, which].shape and (moved == start[:, which]).all():
                found[view.index] = tuple(int(channel) for channel in which)
    return found


def _moved(
    lowering: Lowering, node: NodeView, x: np.ndarray | None, shapes: Inferred
) -> np.ndarray | None:
    shape = _static(shapes, node.output)
    if x is None or node.op == "Identity":
        return x
    if node.op == "Transpose":
        return x.transpose(node.attrs.get("perm", range(x.ndim)[::-1]))
    if node.op == "Gather":
        indices = node.input(1)
        if indices not in lowering.constants:
            return None
        axis, chosen = int(node.attrs.get("axis", 0)), lowering.constants.value(indices)
        fits = ((-x.shape[axis] <= chosen) & (chosen < x.shape[axis])).all()
        return x.take(chosen, axis) if fits else None
    return x.reshape(shape) if shape is not None and math.prod(shape) == x.size else None


def _static(shapes: Inferred, name: str) -> tuple[int, ...] | None:
    return shapes[name].static if name in shapes else None


def _make(
    lowering: Lowering, cone: list[NodeView], value: Value, chosen: dict[int, tuple[int, ...]]
) -> bool:
    """Values for the nodes that give whole channels; none where what is in between is read."""
    known = lowering.known(value)
    assert known is not None
    paths, ends = {cone[0].input(0): tuple[int, ...]()}, dict[int, NodeView]()
    between = set[str]()
    for view in cone:
        if view.input(0) in between or view.index == cone[0].index:
            paths[view.output] = (*paths[view.input(0)], view.index)
            if view.index in chosen:
                ends[view.index] = view
            else:
                between.add(view.output)
    members = {index for path in paths.values() for index in path}
    names = {view.output for view in ends.values()}
    nodes = lowering.enclosed(members, names, lowering.is_pure)
    if nodes is None or not all(lowering.readers.get(name) for name in between):
        return False
    rest = tuple(nodes - members)
    for view in ends.values():
        select = Select(chosen[view.index], *known)
        lowering.apply(view, select, value, nodes=(*rest, *paths[view.output]))
        lowering.to.selects[lowering.to.value_of[view.output]] = chosen[view.index]
    lowering.done.update(nodes)
    lowering.to.hidden.update(between)
    return True
