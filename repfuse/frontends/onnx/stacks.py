"""Recognise the sum and the mean of stacked values: Unsqueeze of each, Concat, ReduceMean."""

from __future__ import annotations

from repfuse.arrays import Array
from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.graph import Sum

__all__ = ["reduce", "unsqueeze"]


def unsqueeze(lowering: Lowering, node: NodeView) -> str | bool:
    """A value that is stacked only to be reduced again waits for that."""
    return _total(lowering, node) is not None


def reduce(lowering: Lowering, node: NodeView) -> str | bool:
    """ReduceMean and ReduceSum over the axis along which values were stacked."""
    stacked = lowering.producer(node.input(0))
    parts = None if stacked is None else _parts(lowering, stacked)
    if stacked is None or parts is None or _total(lowering, parts[0]) != node:
        return False
    names = [part.input(0) for part in parts]
    values = tuple(lowering.value(name) for name in names)
    known = [lowering.known(value) for value in values]
    if len(set(known)) != 1 or known[0] is None or not lowering.is_float(values[0]):
        _give_back(lowering, parts, stacked)
        return False
    nodes = (*sorted({part.index for part in parts}), stacked.index, node.index)
    lowering.to.hidden.update([*(part.output for part in parts), stacked.output])
    if node.op == "ReduceSum":
        lowering.make(node, node.output, Sum(), values, nodes)
        return True
    total = lowering.make(node, "", Sum(), values, nodes)
    channels = known[0][0]
    share = lowering.affine(
        total, Array.full((channels,), 1.0 / len(values)), Array.full((channels,), 0.0)
    )
    return share is not None and lowering.apply(node, share, total, nodes=nodes)


def _give_back(lowering: Lowering, parts: list[NodeView], stacked: NodeView) -> None:
    """What waited is read as anything else."""
    for node in (*parts, stacked):
        lowering.opaque(node)


def _total(lowering: Lowering, part: NodeView) -> NodeView | None:
    """The node that adds up a stack, where the part is one of the stack's."""
    stacked = lowering.only_reader(part)
    if stacked is None or stacked.op != "Concat" or _parts(lowering, stacked) is None:
        return None
    total, axis = lowering.only_reader(stacked), _axis(lowering, part)
    if total is None or total.op not in ("ReduceMean", "ReduceSum") or axis is None:
        return None
    keeps = total.attrs.get("keepdims", 1) or total.attrs.get("noop_with_empty_axes", 0)
    return None if keeps or _axis(lowering, total) != axis else total


def _parts(lowering: Lowering, stacked: NodeView) -> list[NodeView] | None:
    """The Unsqueeze nodes of a stack along a new axis, two or more, which nothing else reads."""
    if stacked.op != "Concat" or len(stacked.inputs) < 2:
        return None
    found = []
    for name in stacked.inputs:
        part = lowering.producer(name)
        alone = part is not None and lowering.only_reader(part) == stacked
        if part is None or not alone or part.op != "Unsqueeze":
            return None
        if not lowering.is_value(part.input(0)):
            return None
        if _axis(lowering, part) != stacked.attrs.get("axis"):
            return None
        found.append(part)
    return found


def _axis(lowering: Lowering, node: NodeView) -> int | None:
    """The one axis of an Unsqueeze or a reduction, which is an attribute in older opsets."""
    axes = node.attrs.get("axes")
    if axes is None:
        name = node.input(1)
        axes = lowering.constants.ints(name) if name in lowering.constants else None
    return int(axes[0]) if axes is not None and len(axes) == 1 else None
