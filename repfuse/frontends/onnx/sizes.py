"""Sizes to try for the dynamic dimensions of a model.

A fixed dimension is as it is. One symbol is one size in all inputs, and so are dimensions without
a name at the same place. The sizes of the others come from a ladder with three on each rung: first
small ones, odd and even and not square, so that borders count; then odd multiples of 32, for
networks that halve their input five times; then what fixed heads ask for (224, 256, 299, 640, a
second of sound at 16 kHz).

Whole numbers are below 8, since they may be masks or sizes; indices of a table, that is of Gather
and the like, are any of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple, TypeAlias

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from repfuse.frontends.onnx.files import graphs_of
from repfuse.frontends.onnx.interface import Port

__all__ = ["FLOATS", "WHOLE_NUMBERS", "Limits", "Try", "rows_of", "tries"]


class Limits(NamedTuple):
    """Whole numbers are below `others`, and where that is 1 they are 1.

    Indices of a table are below its rows and below `rows`; if that is 0, they are as others.
    """

    rows: int
    others: int


Try: TypeAlias = tuple[dict[str, tuple[int, ...]], Limits]

BATCHES = (1, 2, 3)
# Per rung three draws of (height, width, depth) and of any other dimension.
LADDER = (
    (((33, 46, 21), 7), ((40, 37, 18), 4), ((51, 34, 15), 9)),
    (((96, 160, 32), 32), ((160, 96, 32), 16), ((224, 96, 32), 48)),
    (((224, 224, 64), 64), ((192, 320, 64), 128), ((320, 192, 64), 256)),
    (((256, 256, 96), 1), ((384, 384, 96), 77), ((299, 299, 128), 512)),
    (((640, 640, 128), 3), ((512, 512, 128), 2), ((480, 640, 128), 16000)),
)
CHANNELS = 3
LARGEST = 2**24  # elements of all inputs, unless the first try has more
LIMITS = tuple(Limits(0, others) for others in (8, 2, 1))
INDEX_LIMITS = (*(Limits(2**62, others) for others in (8, 2, 1)), Limits(100, 8))
UNKNOWN = 1000  # rows of a table whose size is computed
# Indices come through these, in their first input, as they are or a little changed.
CARRY = {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"}
CARRY |= {"Add", "Clip", "Mod", "Mul", "Sub", "Unsqueeze"}
TABLE = {"Cast", "DequantizeLinear", "Identity"}  # a table that comes through these has its size

WHOLE_NUMBERS = (
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def rows_of(model: ModelProto) -> dict[str, int]:
    """Of each input whose values are indices of a table: the rows of the smallest such table."""
    sizes: dict[str, Sequence[int]] = {
        tensor.name: tensor.dims for tensor in model.graph.initializer
    }
    origin = {value.name: value.name for value in model.graph.input}
    rows: dict[str, int] = {}
    for graph in graphs_of(model):
        depths = _numbers(graph)
        for node in graph.node:
            if node.domain not in ("", "ai.onnx") or not node.output:
                continue
            first = node.input[0] if node.input else ""
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                sizes[node.output[0]] = node.attribute[0].t.dims
            if node.op_type in TABLE and first in sizes:
                sizes[node.output[0]] = sizes[first]
            if node.op_type in CARRY and first in origin:
                origin[node.output[0]] = origin[first]
            source, many = _indexed(node, sizes, depths)
            if source in origin and many:
                name = origin[source]
                rows[name] = min(many, rows.get(name, many))
    return rows


def _indexed(
    node: NodeProto, sizes: Mapping[str, Sequence[int]], depths: Mapping[str, int]
) -> tuple[str, int]:
    """The input of a node that holds indices, and what they are below."""
    if node.op_type == "OneHot":
        return node.input[0], depths.get(node.input[1], 0)
    if node.op_type not in ("Gather", "GatherElements"):
        return "", 0
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    dims = sizes.get(node.input[0])
    if dims is None:
        return node.input[1], UNKNOWN
    return node.input[1], dims[axis] if -len(dims) <= axis < len(dims) else 0


def _numbers(graph: object) -> dict[str, int]:
    """The initializers and constants of one whole number."""
    if not isinstance(graph, GraphProto):
        return {}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: int(numpy_helper.to_array(tensor).reshape(()))
        for name, tensor in tensors.items()
        if prod(tensor.dims) == 1
        and tensor.data_type in (TensorProto.INT32, TensorProto.INT64)
        and tensor.data_location != TensorProto.EXTERNAL
    }


def tries(
    ports: Sequence[Port],
    fixed: Mapping[str, tuple[int, ...]],
    rows: Mapping[str, int],
) -> Iterator[list[Try]]:
    """What to try: of each list the first that runs. A batch may have to be 1."""
    limits = [*(INDEX_LIMITS if rows else ()), *LIMITS]
    whole = any(port.elem not in FLOATS for port in ports)
    largest = 0
    for rung in LADDER:
        for index, (spatial, other) in enumerate(rung):
            batches = dict.fromkeys((BATCHES[index], 1))
            shapes = [_shapes(ports, fixed, batch, spatial, other) for batch in batches]
            elements = sum(map(prod, shapes[-1].values()))
            largest = largest or max(LARGEST, elements)
            if elements <= largest:
                usable = limits if whole else limits[-1:]
                yield [(one, limit) for limit in usable for one in shapes]


def _shapes(
    ports: Sequence[Port],
    fixed: Mapping[str, tuple[int, ...]],
    batch: int,
    spatial: tuple[int, ...],
    other: int,
) -> dict[str, tuple[int, ...]]:
    bound: dict[object, int] = {}
    for port in ports:
        for axis, size in enumerate(fixed.get(port.name, ())):
            bound[_key(port, axis)] = size
    shapes = {}
    for port in ports:
        guessed = _guess(port, batch, spatial, other)
        if port.name in fixed:
            shapes[port.name] = fixed[port.name]
            continue
        sizes = []
        for axis, dim in enumerate(port.dims or ()):
            if not isinstance(dim, int):
                dim = bound.setdefault(_key(port, axis), guessed[axis])
            sizes.append(dim)
        shapes[port.name] = tuple(sizes)
    return shapes


def _key(port: Port, axis: int) -> object:
    """What dimensions that have one size share: their symbol, or their place."""
    dim = port.dims[axis] if port.dims is not None else None
    return dim if isinstance(dim, str) else (axis, axis and len(port.dims or ()))


def _guess(port: Port, batch: int, spatial: tuple[int, ...], other: int) -> list[int]:
    """A size for each axis: (batch, channels, space...), space first if only the last is fixed."""
    dims = port.dims or ()
    if len(dims) < 3 or port.elem not in (*FLOATS, TensorProto.UINT8, TensorProto.INT8):
        return [batch, *[other] * (len(dims) - 1)][: len(dims)]
    if len(dims) == 3 and isinstance(dims[2], int):
        return [batch, other, other]
    last = isinstance(dims[-1], int) and not isinstance(dims[1], int)
    space = [*spatial, *[other] * len(dims)][: len(dims) - 2]
    if len(space) == 1:  # sound may have to be long
        space = [max(spatial[0], other)]
    return [batch, *space, CHANNELS] if last else [batch, CHANNELS, *space]
