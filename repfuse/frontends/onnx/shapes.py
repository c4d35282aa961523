"""Element types and shapes of tensors, inferred from the inputs and the operators alone.

What a file says of its intermediate values and of the shapes of its outputs is often stale and
nobody checks it, so it is not used. Weights are not copied: only their dimensions take part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import onnx
from onnx import AttributeProto, FunctionProto, ModelProto, TensorProto, TypeProto

__all__ = ["FLOATS", "Type", "infer_types", "read_type", "type_proto"]

FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
SMALL = 2048  # bytes: shape computations need the values of small tensors

LENGTHS = ("ConstantOfShape", "Range")
LONG = 2**20  # numbers of a vector

Dim: TypeAlias = int | str | None


@dataclass(frozen=True)
class Type:
    """Element type and dimensions of a tensor; dims is None where even their number is unknown.

    A dimension is a number, a symbol that equals itself wherever it occurs, or unknown.
    """

    elem: int
    dims: tuple[Dim, ...] | None = None

    @property
    def ndim(self) -> int | None:
        return None if self.dims is None else len(self.dims)

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape where all of it is known."""
        dims = tuple(dim for dim in self.dims or () if isinstance(dim, int))
        return dims if self.dims is not None and len(dims) == len(self.dims) else None


def infer_types(
    graph: Any,
    model: ModelProto,
    outside: Mapping[str, Type],
    inner: bool = False,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Type]:
    """What is known of every tensor of a graph; outside: the tensors that a body reads.

    Where inference fails, what it found until then. The inputs of a body carry no shape: those
    of a loop may change from one turn to the next; nothing at all is known of the inputs of a
    function. sizes: shapes that the inputs are taken to have.
    """
    bare = ModelProto(ir_version=model.ir_version)
    function = isinstance(graph, FunctionProto)
    bare.opset_import.extend((graph if function else model).opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = "g"
    for value in () if function else graph.input:
        given = bare.graph.input.add()
        given.CopyFrom(value)
        _forget_dims(given.type, everything=inner)
        if sizes is not None and given.name in sizes:
            elem = given.type.tensor_type.elem_type
            given.type.CopyFrom(type_proto(Type(elem, sizes[given.name])))
    for name, kind in outside.items():
        given = bare.graph.input.add(name=name)
        given.type.CopyFrom(type_proto(kind))
    for tensor in () if function else graph.initializer:
        _stub(bare.graph.initializer.add(), tensor)
    for node in graph.node:
        large = node.op_type == "Constant" and node.ByteSize() > SMALL
        values = [a.t for a in node.attribute if a.type == AttributeProto.TENSOR] if large else []
        if values:  # a weight that stands in a node: its dimensions are enough here, too
            _stub(bare.graph.initializer.add(), values[0], node.output[0])
        else:
            bare.graph.node.add().CopyFrom(node)
    for value in () if function else graph.output:
        bare.graph.output.add(name=value.name)
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=not _explodes(bare)).graph
    except Exception:  # invalid, or of a newer kind than the installed onnx knows
        inferred = bare.graph
    found: dict[str, Type] = {}
    for values in (inferred.value_info, inferred.output, inferred.input):
        for value in values:
            if (known := read_type(value.type)) is not None:
                found[value.name] = known
    for tensor in bare.graph.initializer:
        found[tensor.name] = Type(tensor.data_type, tuple(tensor.dims))
    return found


def _explodes(model: ModelProto) -> bool:
    """Whether onnx would follow a vector that a few bytes make long, one object for each number."""
    graph = model.graph
    numbers = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            numbers.update((node.output[0], a.t) for a in node.attribute if a.HasField("t"))
    read = {n for node in graph.node if node.op_type in LENGTHS for n in node.input}
    for name in read & set(numbers):
        tensor = numbers[name]
        if tensor.data_type not in (TensorProto.INT32, TensorProto.INT64):
            continue
        try:
            values = onnx.numpy_helper.to_array(tensor)
        except Exception:  # a stub, or damaged
            continue
        if values.size and max(abs(int(values.max())), abs(int(values.min()))) > LONG:
            return True
    lengths = {name: prod(t.dims) for name, t in numbers.items() if len(t.dims) == 1}
    for node in graph.node:
        if node.op_type == "Concat" and node.output:
            length = sum(lengths.get(name, 0) for name in node.input)
            lengths[node.output[0]] = length
            if length > LONG:
                return True
    return False


def _forget_dims(kind: TypeProto, everything: bool) -> None:
    """Take out dimensions that are no sizes (0 and below stand for "any" in some files), or all."""
    if not kind.HasField("tensor_type"):
        return
    if everything:
        kind.tensor_type.ClearField("shape")
    for dim in kind.tensor_type.shape.dim if kind.tensor_type.HasField("shape") else ():
        if dim.HasField("dim_value") and dim.dim_value <= 0:
            dim.Clear()


def _stub(stub: TensorProto, tensor: TensorProto, name: str = "") -> None:
    """The tensor as shape inference needs it: with its values only where it is small."""
    if tensor.ByteSize() <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
        stub.CopyFrom(tensor)
    else:
        stub.data_type = tensor.data_type
        stub.dims.extend(tensor.dims)
    stub.name = name or tensor.name


def read_type(kind: TypeProto) -> Type | None:
    """What ONNX says of a type; None for anything but tensors."""
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type") or not tensor.elem_type:
        return None
    if not tensor.HasField("shape"):
        return Type(tensor.elem_type)
    return Type(tensor.elem_type, tuple(_dim(dim) for dim in tensor.shape.dim))


def _dim(dim: Any) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return str(dim.dim_param) if dim.HasField("dim_param") and dim.dim_param else None


def type_proto(known: Type) -> TypeProto:
    """A type as ONNX writes it."""
    kind = TypeProto()
    kind.tensor_type.elem_type = known.elem
    if known.dims is None:
        return kind
    kind.tensor_type.shape.SetInParent()
    for size in known.dims:
        dim = kind.tensor_type.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size:
            dim.dim_param = size
    return kind
