"""Recognise layers: Conv, ConvTranspose, BatchNormalization, AveragePool, Pad, Gemm, MatMul."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from repfuse.arrays import Array
from repfuse.frontends.onnx import fills
from repfuse.frontends.onnx.arithmetic import per_channel
from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.frontends.onnx.numeric import EPSILON
from repfuse.graph import Value
from repfuse.operators import Affine, Conv, Pad, Padding, Pool

__all__ = ["average_pool", "batch_norm", "conv", "conv_transpose", "gemm", "matmul", "pad"]

FAR = 2048  # no window with its border is larger; a probe has to compute on inputs of its size
BORDERS = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def conv(lowering: Lowering, node: NodeView) -> str | bool:
    """Conv with a constant weight (out, in / groups, *kernel_size)."""
    weight, bias, reason = _weights(lowering, node)
    if weight is None or bias is None:
        return reason
    rank = len(weight.shape) - 2
    shaped = _window(node, weight.shape[2:], rank)
    groups = int(node.attrs.get("group", 1))
    if rank < 1 or shaped is None or weight.shape[0] % groups:
        return False
    stride, dilation, padding = shaped
    if padding is None:
        span = tuple(d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
        padding = _auto_pad(lowering, node, stride, span)
        if padding is None:
            return "the padding of auto_pad depends on the size of the input"
    ones = bias.shape != (weight.shape[0],)
    operator = Conv(weight, bias, stride, padding, _plain(dilation, weight.shape[2:]), groups)
    return False if ones else _apply(lowering, node, operator, node.input(1))


def conv_transpose(lowering: Lowering, node: NodeView) -> str | bool:
    """ConvTranspose with a constant weight (in, out / groups, *kernel_size)."""
    weight, bias, reason = _weights(lowering, node, transposed=True)
    if weight is None or bias is None:
        return reason
    rank, groups = len(weight.shape) - 2, int(node.attrs.get("group", 1))
    shaped = _window(node, weight.shape[2:], rank)
    if rank < 1 or shaped is None or weight.shape[0] % groups:
        return False
    stride, dilation, padding = shaped
    if padding is None or "output_shape" in node.attrs:
        return "the crop of a ConvTranspose with auto_pad or output_shape depends on the input"
    extra = node.attrs.get("output_padding", [0] * rank)
    if len(extra) != rank:
        return False
    inputs, columns, *kernel_size = weight.shape
    rows, share = columns * groups, inputs // groups

    def turn(value: np.ndarray) -> np.ndarray:
        grouped = value.reshape(groups, share, columns, *kernel_size)
        return grouped.swapaxes(1, 2).reshape(rows, share, *kernel_size)

    operator = Conv(
        weight=weight.apply((rows, share, *kernel_size), turn),
        bias=bias,
        stride=stride,
        padding=tuple((low, high - more) for (low, high), more in zip(padding, extra, strict=True)),
        dilation=_plain(dilation, tuple(kernel_size)),
        groups=groups,
        transposed=True,
    )
    fits = bias.shape == (rows,)
    return _apply(lowering, node, operator, node.input(1)) if fits else False


def _weights(
    lowering: Lowering, node: NodeView, transposed: bool = False
) -> tuple[Array | None, Array | None, str | bool]:
    """Weight and bias of a conv, or the reason why they are not known."""
    for name in node.inputs[1:3]:
        if lowering.is_value(name):
            return None, None, lowering.constants.why_not(name) or "its weight is no constant"
        if name and lowering.constants.precision(name) is None:
            return None, None, False
    if not lowering.is_value(node.input(0)):
        return None, None, False
    weight = lowering.constants.array(node.input(1))
    if len(weight.shape) < 2:
        return None, None, False
    elem = lowering.constants.kind(node.input(1)).elem
    lowering.learn(lowering.value(node.input(0)), elem, len(weight.shape))
    rows = weight.shape[1] * int(node.attrs.get("group", 1)) if transposed else weight.shape[0]
    bias = lowering.constants.array(node.input(2)) if node.input(2) else Array.full((rows,), 0.0)
    return weight, bias, False


def _window(
    node: NodeView, kernel_size: tuple[int, ...], rank: int
) -> tuple[tuple[int, ...], tuple[int, ...], Padding | None] | None:
    """Stride, dilation and padding; no padding where auto_pad leaves it open; None if invalid."""
    stride = tuple(node.attrs.get("strides", [1] * rank))
    dilation = tuple(node.attrs.get("dilations", [1] * rank))
    sides = node.attrs.get("pads", [0] * (2 * rank))
    given = tuple(node.attrs.get("kernel_shape", kernel_size))
    if given != kernel_size or {len(stride), len(dilation)} != {rank} or len(sides) != 2 * rank:
        return None
    if min((*stride, *dilation, *kernel_size), default=1) < 1 or min(sides, default=0) < 0:
        return None
    border = [low + high for low, high in zip(sides[:rank], sides[rank:], strict=True)]
    reach = [d * k for d, k in zip(dilation, kernel_size, strict=True)]
    if (
        prod(map(sum, zip(reach, stride, border, strict=True))) > FAR**2
        or max(stride, default=1) > FAR
    ):
        return None
    auto = node.attrs.get("auto_pad", "NOTSET") or "NOTSET"
    if auto == "VALID":
        sides = [0] * (2 * rank)
    padding = tuple(zip(sides[:rank], sides[rank:], strict=True))
    return stride, dilation, padding if auto in ("NOTSET", "VALID") else None


def _plain(dilation: tuple[int, ...], kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    """A single tap has no dilation."""
    return tuple(d if k > 1 else 1 for d, k in zip(dilation, kernel_size, strict=True))


def _auto_pad(
    lowering: Lowering, node: NodeView, stride: tuple[int, ...], span: tuple[int, ...]
) -> Padding | None:
    """What SAME_UPPER or SAME_LOWER comes to, where the size of the input does not matter."""
    kind = lowering.to.kinds[lowering.value(node.input(0))]
    dims = kind.dims[2:] if kind.dims is not None else (None,) * len(stride)
    padding = []
    for step, reach, dim in zip(stride, span, dims, strict=False):
        total = reach
        if step > 1:
            if not isinstance(dim, int):
                return None
            total = max(0, (-(-dim // step) - 1) * step + reach + 1 - dim)
        half = total // 2
        low = half if node.attrs["auto_pad"] == "SAME_UPPER" else total - half
        padding.append((low, total - low))
    if len(padding) != len(stride):
        return None
    lowering.to.pads[node.index] = [side[0] for side in padding] + [side[1] for side in padding]
    return tuple(padding)


def batch_norm(lowering: Lowering, node: NodeView) -> str | bool:
    """BatchNormalization on stored statistics; the channels are axis 1."""
    if node.attrs.get("training_mode", 0) or not node.single:
        return "a batch norm on the statistics of the batch"
    if node.attrs.get("spatial", 1) != 1:
        return "a batch norm over each position by itself"
    if not lowering.is_value(node.input(0)) or len(node.inputs) != 5:
        return False
    for name in node.inputs[1:]:
        if name not in lowering.constants:
            return lowering.constants.why_not(name) or "its weight is no constant"
    value = lowering.value(node.input(0))
    lowering.learn(value, lowering.constants.kind(node.input(1)).elem)
    known, ndim = lowering.known(value), lowering.ndim(value)
    if ndim is None:
        return "a batch norm over axis 1 of an input whose number of axes is not known here"
    rank = known[1] if known else max(ndim - 2, 0)
    if ndim != rank + 2:
        return f"a batch norm over axis 1, where the channels are axis {ndim - rank - 1}"
    scale, bias, mean, variance = (lowering.constants.array(name) for name in node.inputs[1:])
    if len({part.shape for part in (scale, bias, mean, variance)}) != 1:
        return False
    eps = float(node.attrs.get("epsilon", EPSILON))
    factor = variance.apply(variance.shape, lambda v: 1.0 / np.sqrt(v + eps)) * scale
    shift = bias + mean.apply(mean.shape, lambda m, s: -m * s, factor)
    return lowering.apply(node, Affine(factor, shift, rank), value)


def average_pool(lowering: Lowering, node: NodeView) -> str | bool:
    """AveragePool; ONNX does not count the border by default."""
    value = lowering.value(node.input(0))
    known, sizes = lowering.known(value), tuple(node.attrs.get("kernel_shape", ()))
    shaped = _window(node, sizes, len(sizes))
    if known is None or shaped is None or known[1] != len(sizes):
        return False
    stride, dilation, padding = shaped
    if set(dilation) - {1}:
        return "a dilated average pooling"
    if padding is None:
        padding = _auto_pad(lowering, node, stride, tuple(k - 1 for k in sizes))
        if padding is None:
            return "the padding of auto_pad depends on the size of the input"
    counted, ceil = (node.attrs.get(name, 0) for name in ("count_include_pad", "ceil_mode"))
    if counted not in (0, 1) or ceil not in (0, 1):
        return False  # what any other number means is not defined
    pool = Pool(known[0], sizes, stride, padding, bool(counted), bool(ceil))
    return lowering.apply(node, pool, value)


def pad(lowering: Lowering, node: NodeView) -> str | bool:
    """Pad of the spatial axes; the amounts are an attribute before opset 11."""
    value, constants = lowering.value(node.input(0)), lowering.constants
    known, ndim = lowering.known(value), lowering.ndim(value)
    amounts: Any = node.attrs.get("pads", node.attrs.get("paddings"))
    fill: float | None = float(node.attrs.get("value", 0.0))
    if amounts is None:
        for slot, fact in enumerate(("width", "value", "axes"), start=1):
            if lowering.is_value(node.input(slot)):
                return f"a border whose {fact} is not known here"
        amounts = constants.ints(node.input(1)) if node.input(1) else None
        if node.input(2):
            fill = float(constants.value(node.input(2)).ravel()[0])
    axes = constants.ints(node.input(3)) if node.input(3) else list(range(len(amounts or ()) // 2))
    mode = node.attrs.get("mode", "constant")
    if known is None or ndim is None or amounts is None or axes is None or not known[1]:
        return False
    if not lowering.is_float(value):
        return False
    if len(amounts) != 2 * len(axes) or (mode != "constant" and mode not in BORDERS):
        return False
    sides = {axis % ndim: (amounts[i], amounts[i + len(axes)]) for i, axis in enumerate(axes)}
    first = ndim - known[1]
    if any(side != (0, 0) for axis, side in sides.items() if axis < first):
        return "a border along the channels or the batch"
    spatial = tuple(sides.get(axis, (0, 0)) for axis in range(first, ndim))
    if mode != "constant" and any(side < 0 for pair in spatial for side in pair):
        return False
    filled = Array.full((known[0],), fill) if mode == "constant" and fill else None
    operator = Pad(known[0], spatial, BORDERS.get(mode, "zeros"), filled)
    return fills.border(lowering, node, operator, value)


def gemm(lowering: Lowering, node: NodeView) -> str | bool:
    """Gemm with a constant second matrix: alpha * x @ B + beta * C."""
    constants, weight = lowering.constants, node.input(1)
    if not lowering.is_value(node.input(0)):
        return False
    if node.attrs.get("transA", 0):
        return "its first matrix is transposed"
    for name in node.inputs[1:3]:
        if lowering.is_value(name):
            return constants.why_not(name) or "its weight is no constant"
        if name and constants.precision(name) is None:
            return False
    matrix = constants.array(weight)
    if len(matrix.shape) != 2:
        return False
    lowering.learn(lowering.value(node.input(0)), constants.kind(weight).elem, 2)
    if not node.attrs.get("transB", 0):
        matrix = matrix.apply(matrix.shape[::-1], np.transpose)
    alpha, beta = (float(node.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
    shift = Array.full((matrix.shape[0],), 0.0)
    if node.input(2):
        found = per_channel(constants.array(node.input(2)), matrix.shape[0], 0, 2)
        if found is None:
            return "its third operand adds another number to each row"
        shift = _times(found, beta)
    operator = Conv(_times(matrix, alpha), shift, (), (), ())
    return _apply(lowering, node, operator, weight)


def matmul(lowering: Lowering, node: NodeView) -> str | bool:
    """MatMul with a constant second matrix; an Add of a constant row that alone reads it joins."""
    constants, weight = lowering.constants, node.input(1)
    if not lowering.is_value(node.input(0)):
        return False
    if weight not in constants:
        return constants.why_not(weight) or False
    matrix = constants.array(weight) if constants.precision(weight) else None
    if matrix is None:
        return False
    if len(matrix.shape) != 2:
        return f"its second matrix has {len(matrix.shape)} axes"
    matrix = matrix.apply(matrix.shape[::-1], np.transpose)
    operator = Conv(matrix, Array.full((matrix.shape[0],), 0.0), (), (), ())
    value = lowering.value(node.input(0))
    lowering.learn(value, constants.kind(weight).elem)
    ndim = lowering.ndim(value)
    if ndim is not None and ndim < 2:
        return False
    add = lowering.only_reader(node)
    if add is not None and add.op == "Add":
        (other,) = [name for name in add.inputs if name != node.output] or [""]
        if other in constants and constants.precision(other):
            shift = per_channel(constants.array(other), matrix.shape[0], 0, ndim)
            joined = None if shift is None else replace(operator, bias=shift)
            nodes = (node.index, add.index)
            if joined is not None and _apply(lowering, add, joined, weight, value, nodes):
                lowering.done.add(add.index)
                return True
    return _apply(lowering, node, operator, weight)


def _apply(
    lowering: Lowering,
    node: NodeView,
    operator: Conv,
    weight: str,
    value: Value | None = None,
    nodes: tuple[int, ...] | None = None,
) -> bool:
    """The operator on a value, by default the first input; notes whether its weight is tied, and
    whether it is computed whenever the graph runs. A tied one would be stored once per reader."""
    source = lowering.value(node.input(0)) if value is None else value
    if not lowering.apply(node, operator, source, nodes=nodes):
        return False
    made = lowering.graph.nodes[lowering.value(node.output)]
    made.tied = _is_tied(lowering, weight)
    made.computed = not made.tied and lowering.constants.is_computed(weight, *node.inputs)
    return True


def _is_tied(lowering: Lowering, weight: str) -> bool:
    """Whether a weight is used elsewhere as well, or what it is a view of."""
    name: str | None = weight
    while name is not None:
        if len(lowering.readers.get(name, ())) > 1:
            return True
        index = lowering.constants.made_by.get(name)
        inputs = lowering.scope.protos[index].input if index is not None else ()
        name = inputs[0] if inputs else None
    return False


def _times(array: Array, factor: float) -> Array:
    return array if factor == 1.0 else array * Array.full((1,) * len(array.shape), factor)
