"""Recognise channel shuffles: Reshape that splits the channel axis, Transpose, Reshape back.

The shapes are numbers, or are put together from the sizes of the very tensor that is shuffled.
"""

from __future__ import annotations

from math import prod
from typing import TypeAlias

import numpy as np

from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.graph import Opaque, Value
from repfuse.operators import Affine, Conv, Select

__all__ = ["reshape"]

Size: TypeAlias = int | str  # a number; "#2" is the size of axis 2 of the shuffled tensor
KEEPERS = {
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "HardSwish",
    "HardSigmoid",
    "Clip",
    "Elu",
    "Tanh",
    "Gelu",
}
CARRY = {"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape"}


def reshape(lowering: Lowering, node: NodeView) -> str | bool:
    """The first Reshape of a shuffle; the whole of it becomes a selection of channels."""
    name = node.input(0)
    if not lowering.is_value(name):
        return False
    value = lowering.value(name)
    known, chain = lowering.known(value), _chain(lowering, node)
    if known is None or chain is None or not known[1] or not lowering.is_float(value):
        return False
    channels, rank = known
    turn, last, nodes = chain
    if lowering.ndim(value) != rank + 2:
        return False
    dims = [f"#{axis}" for axis in range(rank + 2)]
    alike = _alike(lowering, value)
    split, back = (_sizes(lowering, step.input(1), alike) for step in (node, last))
    for step, sizes in ((node, split), (last, back)):
        if sizes is None or (0 in sizes and step.attrs.get("allowzero", 0)):
            return False
    factors = _factors(lowering, name, split, dims, channels)
    order = list(turn.attrs.get("perm", ()))
    if factors is None or split is None or back is None:
        return False
    inside = list(range(1, len(factors) + 1))
    others = [0, *range(len(factors) + 1, len(factors) + 1 + rank)]
    moved = order[1 : len(factors) + 1]
    if sorted(moved) != inside or [order[0], *order[len(factors) + 1 :]] != others:
        return False
    if _factors(lowering, name, back, dims, channels) != [channels]:
        return False
    around = _shape_nodes(lowering, {step.input(1) for step in (node, last)}, nodes)
    if around is None:
        return False
    places = np.arange(channels).reshape(factors).transpose([axis - 1 for axis in moved])
    members = (*sorted({*nodes, *around} - {last.index}), last.index)
    select = Select(tuple(places.ravel().tolist()), channels, rank)
    if not lowering.apply(last, select, value, nodes=members):
        return False
    made = lowering.to.value_of[last.output]
    kept = [size for sizes in (split, back) for size in (sizes[0], *sizes[len(sizes) - rank :])]
    if any(isinstance(size, int) and size > 0 for size in kept):
        lowering.to.fixed.add(made)
    for index in around:  # sizes of another tensor that has the same
        if lowering.scope.protos[index].op_type == "Shape":
            lowering.to.instead[index] = name
    for index in around:  # they stay or go with the shuffle, whatever they were read as before
        for out in lowering.scope.protos[index].output:
            if out in lowering.to.value_of:
                lowering.to.made_by[lowering.to.value_of[out]] = ()
    lowering.done.update(members)
    lowering.to.metadata = [m for m in lowering.to.metadata if m.index not in around]
    lowering.to.hidden.update(
        out for i in members if i != last.index for out in lowering.scope.protos[i].output
    )
    return True


def _chain(
    lowering: Lowering, first: NodeView
) -> tuple[NodeView, NodeView, tuple[int, ...]] | None:
    """The Transpose and the second Reshape, and the nodes from the first one to it."""
    turn, current, nodes = None, first, [first.index]
    while (reader := lowering.only_reader(current)) is not None:
        if reader.input(0) != current.output or reader.op not in CARRY | {"Transpose"}:
            return None
        nodes.append(reader.index)
        if reader.op == "Reshape":
            return None if turn is None else (turn, reader, tuple(nodes))
        if reader.op == "Transpose":
            if turn is not None:
                return None
            turn = reader
        elif reader.op != "Identity":
            return None
        current = reader
    return None


def _factors(
    lowering: Lowering, name: str, sizes: list[Size] | None, dims: list[str], channels: int
) -> list[int] | None:
    """The axes that a Reshape splits the channels into, where it leaves the others as they are."""
    rank = len(dims) - 2
    if sizes is None or len(sizes) < rank + 2 or sizes.count(-1) > 1:
        return None
    split, kept = sizes[1 : len(sizes) - rank], [sizes[0], *sizes[len(sizes) - rank :]]
    known = lowering.to.kinds[lowering.value(name)].dims or (None,) * len(dims)
    for place, (size, axis) in enumerate(zip(kept, [0, *range(2, rank + 2)], strict=True)):
        same = size in (-1, dims[axis]) or (isinstance(size, int) and size == known[axis] != 0)
        if size == 0:  # the size of the same place before
            same = place == 0 or len(sizes) == rank + 2
        if not same:
            return None
    factors = [size for size in split if isinstance(size, int) and size != 0]
    if len(factors) < len(split) or not factors:
        return None
    rest = prod(size for size in factors if size != -1)
    factors = [channels // rest if size == -1 else size for size in factors]
    return factors if prod(factors) == channels and min(factors) > 0 else None


def _alike(lowering: Lowering, value: Value) -> dict[str, Value]:
    """The tensors that have the sizes of the value, but for its channels: what it is made of by
    operations on every element and by convs that keep the size."""
    graph, found = lowering.graph, {lowering.to.names[value]: value}
    while graph.operands(value):
        producer = graph.nodes[value].producer
        if isinstance(producer, Conv):
            plain = set(producer.stride) == {1} and not any(producer.slack)
            keeps = plain and not producer.transposed
        elif isinstance(producer, Opaque):
            keeps = producer.reason in KEEPERS
        else:
            keeps = isinstance(producer, Affine | Select)
        value, *others = graph.operands(value)
        if not keeps or others or value not in lowering.to.names:
            break
        found[lowering.to.names[value]] = value
    return found


def _sizes(lowering: Lowering, name: str, alike: dict[str, Value]) -> list[Size] | None:
    """A shape, element by element; "#i" where it is the size of an axis of the shuffled tensor."""
    constants = lowering.constants
    if name in constants:
        return list(constants.ints(name) or ()) or None
    node = lowering.producer(name)
    if node is None:
        return None
    if node.op == "Shape" and node.input(0) in alike:
        value = alike[node.input(0)]
        known = lowering.known(value)
        axes: list[Size] = [f"#{axis}" for axis in range(lowering.ndim(value) or 0)]
        if len(axes) < 2 or known is None:
            return None
        axes[1] = known[0] if known == lowering.known(next(iter(alike.values()))) else "another"
        return axes[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    if node.op == "Concat":
        parts = [_sizes(lowering, part, alike) for part in node.inputs]
        return None if None in parts else [size for part in parts for size in part or ()]
    if node.op == "Gather" and node.input(1) in constants:
        sizes, places = _sizes(lowering, node.input(0), alike), constants.ints(node.input(1))
        if (
            sizes is None
            or places is None
            or any(not -len(sizes) <= p < len(sizes) for p in places)
        ):
            return None
        return [sizes[place] for place in places]
    return _sizes(lowering, node.input(0), alike) if node.op in CARRY else None


def _shape_nodes(lowering: Lowering, names: set[str], chain: tuple[int, ...]) -> set[int] | None:
    """The nodes that compute the shapes and serve nothing else; None where one that is no constant
    serves more."""
    found, todo = dict[int, NodeView](), list(names)
    while todo:
        node = lowering.producer(todo.pop())
        if node is None or node.index in found:
            continue
        found[node.index] = node
        if node.op != "Shape":
            todo += [part for part in node.inputs if part]
    for index in sorted(found, reverse=True):  # readers before what they read
        names = set(lowering.scope.protos[index].output)
        readers = {reader for name in names for reader in lowering.readers.get(name, ())}
        if readers <= {*found, *chain} and names.isdisjoint(lowering.scope.outputs):
            continue
        if names.isdisjoint(lowering.constants.made_by):
            return None
        del found[index]
    return set(found)
