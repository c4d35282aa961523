"""Run single nodes in float64.

onnx.reference runs most operators; those below it runs slowly, wrongly (grouped ConvTranspose,
BatchNormalization of opset 9) or not at all (Dropout of opset 9, Unsqueeze before opset 13,
negative padding, a Mean whose operands broadcast, updates of ScatterND that do).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import NodeProto, helper

from repfuse.frontends.onnx.lowering import Move

__all__ = ["EPSILON", "Misread", "Runner"]

EPSILON = float(np.float32(1e-5))  # of a batch norm that gives none: attributes are float32


class Misread(Exception):
    """A node that moves axes does something else than what it was taken for."""


class Runner:
    """Runs a sequence of nodes on float64 arrays.

    Raises Misread where a node that moves axes does something else than what it was taken for.
    """

    def __init__(
        self, nodes: Sequence[NodeProto], opset: int, moves: Mapping[str, Move] | None = None
    ) -> None:
        """moves: what nodes do that change the layout, by what they give. Sizes that stand in a
        Reshape as numbers, or that are computed, are those of the data at hand."""
        self._moves = moves or {}
        self._nodes = list(nodes)
        self._opset = opset
        self._others: dict[int, Any] = {}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every tensor by name, those that were given among them."""
        values = dict(feeds)
        for place, node in enumerate(self._nodes):
            if node.output[0] in self._moves:
                values[node.output[0]] = _move(self._moves[node.output[0]], node, values)
                continue
            inputs = [values[name] if name else None for name in node.input]
            own = OWN.get(node.op_type)
            if own is not None:
                attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                values[node.output[0]] = own(attrs, *inputs)
                continue
            named = {name: values[name] for name in node.input if name}
            results = self._other(place, node).run(None, named)
            made: Any = [x if isinstance(x, list) else np.asarray(x) for x in results]
            values.update(zip(node.output, made, strict=False))  # a list is a sequence
        return values

    def _other(self, place: int, node: NodeProto) -> Any:
        if place not in self._others:
            from onnx.reference import ReferenceEvaluator

            self._others[place] = ReferenceEvaluator(node, opsets={"": self._opset})
        return self._others[place]


def _move(move: Move, node: NodeProto, values: dict[str, np.ndarray]) -> np.ndarray:
    """What the node itself makes; it has to be what its recognition says."""
    x, sizes = values[node.input[0]], list(values[move.root].shape)
    sizes[move.before.channel] = x.shape[move.before.place]
    old, new = move.before.order(), move.after.order()
    assert old is not None and new is not None
    if list(x.shape) != move.before.sizes(sizes):
        raise Misread(f"{node.output[0]} reads data of shape {x.shape}")
    original = x.reshape([sizes[axis] for axis in old]).transpose(np.argsort(old))
    expected = original.transpose(new).reshape(move.after.sizes(sizes))
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Transpose":
        made = x.transpose(attrs.get("perm"))
    elif node.op_type == "Flatten":
        axis = attrs.get("axis", 1)
        made = x.reshape(int(np.prod(x.shape[:axis])), -1)
    else:
        made = x.reshape(_shape(values.get(node.input[1]), x, expected, move.after.place))
    if made.shape != expected.shape or (made != expected).any():
        raise Misread(f"{node.output[0]} does not have its axes as it was taken to")
    return made


def _shape(given: np.ndarray | None, x: np.ndarray, expected: np.ndarray, place: int) -> list[int]:
    """The shape that a Reshape gives to data of another size: the number of channels as it stands
    there, and the sizes that are copied or follow from the others."""
    shape = list(expected.shape)
    if given is None or len(given) != len(shape):
        return shape
    for axis, size in enumerate(given.tolist()):
        if size == 0:
            shape[axis] = x.shape[axis] if axis < x.ndim else 0
        elif size == -1 or axis == place:
            shape[axis] = size
    return shape


def _sides(attrs: dict[str, Any], rank: int) -> list[tuple[int, int]]:
    if attrs.get("auto_pad", b"NOTSET") == b"VALID":
        return [(0, 0)] * rank
    pads = attrs.get("pads", [0] * (2 * rank))
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _windows(
    x: np.ndarray, kernel_size: Sequence[int], attrs: dict[str, Any], fill: float = 0.0
) -> np.ndarray:
    """(batch, channels, *positions, *kernel_size)."""
    rank = len(kernel_size)
    stride = attrs.get("strides", [1] * rank)
    dilation = attrs.get("dilations", [1] * rank)
    padded = np.pad(x, [(0, 0), (0, 0), *_sides(attrs, rank)], constant_values=fill)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    windows: Any = sliding_window_view(padded, tuple(reach), axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, step) for step in (*stride, *dilation)]
    return np.asarray(windows[(slice(None), slice(None), *steps)])


def conv(
    attrs: dict[str, Any], x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    groups, kernel_size = attrs.get("group", 1), weight.shape[2:]
    windows = _windows(x, kernel_size, attrs)
    batch, rank = x.shape[0], len(kernel_size)
    positions = windows.shape[2 : 2 + rank]
    grouped = windows.reshape(batch, groups, -1, *positions, *kernel_size)
    order = [1, 2, *range(3 + rank, 3 + 2 * rank), 0, *range(3, 3 + rank)]
    columns = grouped.transpose(order).reshape(groups, weight[0].size, -1)
    rows = weight.reshape(groups, -1, weight[0].size)
    result = np.asarray(rows @ columns).reshape(weight.shape[0], batch, *positions).swapaxes(0, 1)
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def conv_transpose(
    attrs: dict[str, Any], x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    groups, kernel_size = attrs.get("group", 1), weight.shape[2:]
    rank, batch = len(kernel_size), x.shape[0]
    stride = attrs.get("strides", [1] * rank)
    dilation = attrs.get("dilations", [1] * rank)
    extra = attrs.get("output_padding", [0] * rank)
    sides = _sides(attrs, rank)
    grown = [
        s * (size - 1) + d * (k - 1) + 1 + more
        for s, size, d, k, more in zip(
            stride, x.shape[2:], dilation, kernel_size, extra, strict=True
        )
    ]
    columns = weight.shape[1]
    result = np.zeros((batch, groups * columns, *grown))
    data = x.reshape(batch, groups, -1, int(np.prod(x.shape[2:])))
    matrices = weight.reshape(groups, -1, columns, *kernel_size)
    for tap in np.ndindex(*kernel_size):
        part = matrices[(..., *tap)].swapaxes(1, 2) @ data
        where = tuple(
            slice(d * t, d * t + s * (size - 1) + 1, s)
            for d, t, s, size in zip(dilation, tap, stride, x.shape[2:], strict=True)
        )
        result[(slice(None), slice(None), *where)] += part.reshape(batch, -1, *x.shape[2:])
    crop = tuple(slice(low, size - high) for (low, high), size in zip(sides, grown, strict=True))
    result = result[(slice(None), slice(None), *crop)]
    if 0 in result.shape:
        raise ValueError("nothing is left after the crop")
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def batch_norm(attrs: dict[str, Any], x: np.ndarray, *parameters: np.ndarray) -> np.ndarray:
    ones = [1] * (x.ndim - 2)
    scale, bias, mean, variance = (part.reshape(-1, *ones) for part in parameters)
    deviation = np.sqrt(variance + attrs.get("epsilon", EPSILON))
    return np.asarray(scale * (x - mean) / deviation + bias)


def average_pool(attrs: dict[str, Any], x: np.ndarray) -> np.ndarray:
    if attrs.get("ceil_mode", 0):
        raise NotImplementedError("ceil_mode")
    kernel_size = attrs["kernel_shape"]
    axes = tuple(range(-len(kernel_size), 0))
    total = _windows(x, kernel_size, attrs).sum(axis=axes)
    fill = float(attrs.get("count_include_pad", 0))
    return np.asarray(total / _windows(np.ones_like(x), kernel_size, attrs, fill).sum(axis=axes))


def pad(
    attrs: dict[str, Any],
    x: np.ndarray,
    amounts: np.ndarray | None = None,
    value: np.ndarray | None = None,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    given = np.asarray(attrs["pads"] if amounts is None else amounts).reshape(2, -1).T
    sides = np.zeros((x.ndim, 2), int)
    sides[list(range(x.ndim)) if axes is None else axes] = given
    kept = tuple(
        slice(max(0, -low), size - max(0, -high))
        for (low, high), size in zip(sides, x.shape, strict=True)
    )
    mode: Any = attrs.get("mode", b"constant").decode()
    fill = attrs.get("value", 0.0) if value is None else np.asarray(value).ravel()[0]
    options: dict[str, Any] = {"constant_values": fill} if mode == "constant" else {}
    return np.asarray(np.pad(x[kept], np.maximum(sides, 0), mode, **options))


def scatter_nd(
    attrs: dict[str, Any], x: np.ndarray, places: np.ndarray, updates: np.ndarray
) -> np.ndarray:
    """ScatterND, whose updates broadcast here: an expanded constant comes as it was before."""
    if attrs.get("reduction", b"none") != b"none":
        raise NotImplementedError("reduction")
    result = x.copy()
    result[tuple(np.moveaxis(places, -1, 0))] = updates
    return result


def dropout(attrs: dict[str, Any], x: np.ndarray, *rest: np.ndarray | None) -> np.ndarray:
    return x  # outside of training, the only one that a region has


def mean(attrs: dict[str, Any], *inputs: np.ndarray) -> np.ndarray:
    return np.asarray(sum(inputs) / len(inputs))


def unsqueeze(attrs: dict[str, Any], x: np.ndarray, axes: Any = None) -> np.ndarray:
    return np.expand_dims(x, tuple(attrs["axes"] if axes is None else axes))


def squeeze(attrs: dict[str, Any], x: np.ndarray, axes: Any = None) -> np.ndarray:
    axes = attrs.get("axes") if axes is None else axes
    return np.squeeze(x, None if axes is None else tuple(axes))


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A quotient; that of whole numbers is cut to one."""
    whole = np.issubdtype(a.dtype, np.integer)
    return np.asarray(np.fix(a / b).astype(a.dtype) if whole else a / b)


OWN: dict[str, Any] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "BatchNormalization": batch_norm,
    "AveragePool": average_pool,
    "Dropout": dropout,
    "Mean": mean,
    "Pad": pad,
    "ScatterND": scatter_nd,
    # What most regions hold besides: an evaluator of onnx.reference costs more than the operation.
    "Add": lambda attrs, a, b: a + b,
    "Sub": lambda attrs, a, b: a - b,
    "Mul": lambda attrs, a, b: a * b,
    "Div": lambda attrs, a, b: divide(a, b),
    "Neg": lambda attrs, a: -a,
    "Sum": lambda attrs, *operands: sum(operands[1:], start=operands[0]),
    "Identity": lambda attrs, a: a,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "MatMul": lambda attrs, a, b: a @ b,
}
