"""The same model with its weights written in other ways: as Constant nodes, behind an Identity,
computed from others, or as inputs with a default, which are no constants any more."""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["disguise"]

SHARE = 0.25  # of the weights
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
WAYS = ("constant", "identity", "scaled", "turned", "reshaped", "halves", "sum", "cast", "input")


def disguise(model: ModelProto, dice: random.Random) -> ModelProto:
    """Changes the model itself, and returns it."""
    made: list[NodeProto] = []
    initializers = list(model.graph.initializer)
    for tensor in initializers:
        if tensor.data_type not in FLOATS or dice.random() > SHARE:
            continue
        array, way = numpy_helper.to_array(tensor), dice.choice(WAYS)
        if way == "input":
            if dice.random() < 0.3:
                info = helper.make_tensor_value_info(tensor.name, tensor.data_type, array.shape)
                model.graph.input.append(info)
            continue
        parts = _parts(tensor.name, array, way, dice)
        if parts is None:
            continue
        model.graph.initializer.remove(tensor)
        nodes, weights = parts
        made += nodes
        for name, values in weights.items():
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*made, *nodes])
    onnx.checker.check_model(model)
    return model


def _parts(
    name: str, array: np.ndarray, way: str, dice: random.Random
) -> tuple[list[NodeProto], dict[str, np.ndarray]] | None:
    """Nodes that give the array under its name, and what they are given; None where they cannot."""

    def node(op: str, *weights: str, **attrs: object) -> list[NodeProto]:
        return [helper.make_node(op, list(weights), [name], **attrs)]

    raw, other = f"{name}.raw", f"{name}.other"
    if way == "constant":
        return node("Constant", value=numpy_helper.from_array(array)), {}
    if way == "identity":
        return node("Identity", raw), {raw: array}
    if way == "scaled":
        half = array.dtype.type(0.5)
        return node("Mul", raw, other), {raw: array * 2, other: np.asarray(half)}
    if way == "turned":
        axes = dice.sample(range(array.ndim), array.ndim)
        back = np.ascontiguousarray(array.transpose(np.argsort(axes)))
        return (node("Transpose", raw, perm=axes), {raw: back}) if array.ndim else None
    if way == "reshaped":
        shape = np.array(array.shape, np.int64)
        return node("Reshape", raw, other), {raw: array.reshape(-1), other: shape}
    if way == "halves" and array.ndim and array.shape[0] > 1:
        half = array.shape[0] // 2
        return node("Concat", raw, other, axis=0), {raw: array[:half], other: array[half:]}
    if way == "sum":
        rest = np.round(array)  # exact: what is left of a float is a float
        return node("Add", raw, other), {raw: array - rest, other: rest}
    if way == "cast":
        elem = helper.np_dtype_to_tensor_dtype(array.dtype)
        return node("Cast", raw, to=elem), {raw: array}
    return None
