"""Recognise borders that are filled by ScatterND: padded by zeros, then one side after the other.

What an exporter makes of `y[:, :, :1, :] = b` holds the positions as numbers, for one size of the
input. So the nodes are followed on a tensor of that size: where they leave everything inside as it
was and one number per channel around it, all of them are one Pad.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from repfuse.arrays import Array
from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.graph import Value
from repfuse.operators import Pad

__all__ = ["around_chain", "border", "data_reader"]

LARGEST = 2**24  # elements


@dataclass
class _Tensor:
    """numbers: what was written. origin: the position in the padded tensor, -1 where something
    was written."""

    numbers: np.ndarray
    origin: np.ndarray


def border(lowering: Lowering, node: NodeView, pad: Pad, value: Value) -> bool:
    """A Pad, and what fills its border, on a value."""
    chain, last, number = _follow(lowering, node, pad)
    around = None if number is None else around_chain(lowering, chain, last)
    if number is None or around is None:
        return lowering.apply(node, pad, value)
    nodes = (*sorted({*chain, *around} - {last.index}), last.index)
    wide = replace(pad, value=Array.of(number))
    if not lowering.apply(last, wide, value, nodes=nodes):
        return False
    made = lowering.to.value_of[last.output]
    lowering.to.fixed.add(made)
    lowering.done.update(nodes)
    lowering.to.hidden.update(
        name for index in nodes for name in lowering.scope.protos[index].output
    )
    lowering.to.hidden.discard(last.output)
    return True


def _follow(
    lowering: Lowering, node: NodeView, pad: Pad
) -> tuple[tuple[int, ...], NodeView, np.ndarray | None]:
    """The nodes up to the last one after which the border is one number per channel."""
    kind = lowering.scope.types.get(node.output)
    shape = None if kind is None else kind.static
    best: tuple[tuple[int, ...], NodeView, np.ndarray | None] = ((node.index,), node, None)
    if shape is None or pad.border != "zeros" or np.prod(shape) > LARGEST:
        return best
    start = np.arange(int(np.prod(shape))).reshape(shape)
    tensor, nodes, current = _Tensor(np.zeros(shape), start), best[0], node
    while (reader := data_reader(lowering, current)) is not None:
        moved = _step(lowering, reader, current, tensor)
        if moved is None:
            break
        tensor, nodes, current = moved, (*nodes, reader.index), reader
        number = _number(tensor, start, pad)
        if number is not None:
            best = nodes, current, number
    return best


def _step(lowering: Lowering, node: NodeView, before: NodeView, tensor: _Tensor) -> _Tensor | None:
    """What a node makes of the tensor; None for any other than those that fill a border."""
    constants = lowering.constants
    if node.input(0) != before.output or not all(name in constants for name in node.inputs[1:]):
        return None
    if node.op == "Identity":
        return tensor
    if node.op == "Transpose":
        axes = node.attrs.get("perm", range(tensor.origin.ndim)[::-1])
        return _Tensor(tensor.numbers.transpose(axes), tensor.origin.transpose(axes))
    if node.op != "ScatterND" or node.attrs.get("reduction", "none") != "none":
        return None
    where = tuple(np.moveaxis(constants.value(node.input(1)), -1, 0))
    numbers, origin = tensor.numbers.copy(), tensor.origin.copy()
    numbers[where], origin[where] = constants.value(node.input(2)), -1
    return _Tensor(numbers, origin)


def _number(tensor: _Tensor, start: np.ndarray, pad: Pad) -> np.ndarray | None:
    """The border's number per channel, where everything else stands at its place."""
    if tensor.origin.shape != start.shape:
        return None
    inside = tuple(
        slice(max(low, 0), size - max(high, 0))
        for size, (low, high) in zip(start.shape[2:], pad.padding, strict=True)
    )
    around = np.ones(start.shape[2:], bool)
    around[inside] = False
    if not around.any() or (tensor.origin != start)[:, :, ~around].any():
        return None
    numbers = tensor.numbers[:, :, around].swapaxes(0, 1).reshape(start.shape[1], -1)
    number: np.ndarray = numbers[:, 0]
    return number if (numbers == number[:, None]).all() else None


def data_reader(lowering: Lowering, node: NodeView) -> NodeView | None:
    """The node that alone reads the first output for more than its shape."""
    readers = lowering.readers.get(node.output, [])
    data = [index for index in readers if not _is_about_shape(lowering, index)]
    if len(data) != 1 or node.output in lowering.scope.outputs:
        return None
    domain = lowering.scope.protos[data[0]].domain
    return lowering.view(data[0]) if domain in ("", "ai.onnx") else None


def _is_about_shape(lowering: Lowering, index: int) -> bool:
    """Whether a node makes constants, or something of which only the shape is asked for."""
    return all(
        name in lowering.constants
        or (
            name not in lowering.scope.outputs
            and all(_is_about_shape(lowering, i) for i in lowering.readers.get(name, ()))
        )
        for name in lowering.scope.protos[index].output
        if name
    )


def around_chain(lowering: Lowering, nodes: tuple[int, ...], last: NodeView) -> set[int] | None:
    """The nodes that read what is in between for its shape, and make no constants; None where
    anything but these nodes asks for that."""
    chain, found = set(nodes), set[int]()
    todo = [name for i in nodes for name in lowering.scope.protos[i].output if name != last.output]
    while todo:
        name = todo.pop()
        if name in lowering.scope.outputs:
            return None
        for index in lowering.readers.get(name, ()):
            if index in chain or index in found:
                continue
            outputs = [made for made in lowering.scope.protos[index].output if made]
            if not _is_about_shape(lowering, index) or not outputs:
                return None
            if not all(made in lowering.constants for made in outputs):
                found.add(index)
            todo += outputs
    return found
