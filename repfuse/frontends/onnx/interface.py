"""What a model takes and gives: names, types and shapes, and how those of two models differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import onnx
from onnx import ModelProto, ValueInfoProto

__all__ = ["Port", "differences", "inputs_of", "outputs_of", "overridable_of"]

Dim: TypeAlias = int | str | None


@dataclass(frozen=True)
class Port:
    """An input or output. kind: "tensor", or what else it is; dims: None if not known.

    default: whether an input may be left out, since an initializer has its name.
    A dimension is a size, a symbol that stands for one size wherever it occurs, or unknown.
    """

    name: str
    elem: int
    dims: tuple[Dim, ...] | None
    kind: str = "tensor"
    default: bool = False

    @property
    def type_name(self) -> str:
        if not self.elem:
            return self.kind
        if self.elem not in onnx.TensorProto.DataType.values():
            name = f"unknown element type {self.elem}"
        else:
            name = onnx.TensorProto.DataType.Name(self.elem).lower()
        return name if self.kind == "tensor" else f"{self.kind} of {name}"

    @property
    def shape_text(self) -> str:
        """As a user writes it: Nx3x224x224."""
        if self.dims is None:
            return "of any shape"
        return "x".join("?" if dim is None else str(dim) for dim in self.dims) or "scalar"


def inputs_of(model: ModelProto) -> list[Port]:
    """What a caller has to give: an initializer that is also an input has a value already."""
    held = _held(model)
    return [_port(value) for value in model.graph.input if value.name not in held]


def overridable_of(model: ModelProto) -> list[Port]:
    """What a caller may give: before IR version 4 every initializer is an input, and none may."""
    if model.ir_version < 4:
        return []
    held = _held(model)
    ports = [_port(value) for value in model.graph.input if value.name in held]
    return [replace(port, default=True) for port in ports]


def outputs_of(model: ModelProto) -> list[Port]:
    """What a model gives, in its order."""
    return [_port(value) for value in model.graph.output]


def differences(reference: ModelProto, candidate: ModelProto) -> list[tuple[str, str]]:
    """Where the interfaces of two models differ: ("input 'x'", how) for each difference.

    Which symbol names a dynamic dimension makes no difference; nor does an output of which one of
    the models does not say the shape.
    """
    found = []
    for role, find in (("input", _inputs), ("output", outputs_of)):
        mine, theirs = find(reference), find(candidate)
        names, others = [port.name for port in mine], [port.name for port in theirs]
        for name in dict.fromkeys(names):
            times, again = names.count(name), others.count(name)
            if again and times != again:
                found.append((f"{role} {name!r}", f"{times} times, {again} in the candidate"))
        for name in names:
            if name not in others:
                found.append((f"{role} {name!r}", "missing in the candidate"))
        for name in others:
            if name not in names:
                found.append((f"{role} {name!r}", "only in the candidate"))
        if sorted(names) == sorted(others) and names != others:
            order = f"{', '.join(names)} in the reference, {', '.join(others)} in the candidate"
            found.append((f"{role}s", f"another order: {order}"))
        named = {port.name: port for port in theirs}
        for port in mine:
            if port.name in named and (fault := _difference(port, named[port.name], role)):
                found.append((f"{role} {port.name!r}", fault))
    return found


def _inputs(model: ModelProto) -> list[Port]:
    return [*inputs_of(model), *overridable_of(model)]


def _held(model: ModelProto) -> set[str]:
    held = {tensor.name for tensor in model.graph.initializer}
    return held | {tensor.values.name for tensor in model.graph.sparse_initializer}


def _difference(mine: Port, theirs: Port, role: str) -> str:
    if mine.default != theirs.default:
        which = ("reference", "candidate")[theirs.default]
        return f"it has a default value in the {which} only"
    if mine.type_name != theirs.type_name:
        return f"{mine.type_name} in the reference, {theirs.type_name} in the candidate"
    unknown = mine.dims is None or theirs.dims is None
    if (unknown and role == "output") or _sizes(mine) == _sizes(theirs):
        return ""
    return f"{mine.shape_text} in the reference, {theirs.shape_text} in the candidate"


def _sizes(port: Port) -> list[int | None] | None:
    if port.dims is None:
        return None
    return [dim if isinstance(dim, int) else None for dim in port.dims]


def _port(value: ValueInfoProto) -> Port:
    kind = value.type.WhichOneof("value")
    if kind == "tensor_type":
        tensor = value.type.tensor_type
        return Port(value.name, tensor.elem_type, _dims(tensor))
    name = (kind or "value of an unknown type").removesuffix("_type")
    inner: Any = getattr(value.type, kind).elem_type if kind in _NESTED else None
    return Port(value.name, inner.tensor_type.elem_type if inner else 0, None, name)


_NESTED = ("sequence_type", "optional_type")


def _dims(tensor: Any) -> tuple[Dim, ...] | None:
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or None
        for dim in tensor.shape.dim
    )
