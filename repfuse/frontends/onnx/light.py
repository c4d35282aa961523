"""Copies of a model without its large values."""

from __future__ import annotations

from collections.abc import Callable

from onnx import GraphProto, ModelProto, TensorProto

__all__ = ["without_values"]


def without_values(model: ModelProto, leave_out: Callable[[TensorProto], bool]) -> ModelProto:
    """A copy of a model, but of the initializers that are left out only name, type and shape."""
    light = ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            _copy_graph(model.graph, light.graph, leave_out)
        elif field.is_repeated:
            getattr(light, field.name).extend(value)
        else:
            setattr(light, field.name, value)
    return light


def _copy_graph(
    source: GraphProto, target: GraphProto, leave_out: Callable[[TensorProto], bool]
) -> None:
    target.SetInParent()
    for field, value in source.ListFields():
        if field.name == "initializer":
            for tensor in source.initializer:
                copied = target.initializer.add(name=tensor.name)
                if leave_out(tensor):
                    copied.data_type = tensor.data_type
                    copied.dims.extend(tensor.dims)
                else:
                    copied.CopyFrom(tensor)
        elif field.is_repeated:
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)
