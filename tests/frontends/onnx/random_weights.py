"""The same model with its weights written in other ways: as Constant nodes, behind an Identity,
computed from others, shared, or as inputs with a default, which are no constants any more."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.frontends.onnx.evaluate import NARROW

__all__ = ["disguise", "tie"]

SHARE = 0.25  # of the weights
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
# With the opset that has their form.
WAYS = {
    "constant": 7, "identity": 7, "scaled": 7, "turned": 7, "reshaped": 7, "halves": 7, "sum": 7,
    "cast": 7, "input": 7, "numbers": 12, "filled": 9, "piece": 10, "gathered": 7, "where": 9,
    "expanded": 8, "split": 13, "bordered": 11, "stretched": 18, "dequantized": 13, "squeezed": 13,
    "negated": 7, "looked": 7,
}  # fmt: skip


def disguise(model: ModelProto, dice: random.Random) -> ModelProto:
    """Changes the model itself, and returns it."""
    made: list[NodeProto] = []
    opset = model.opset_import[0].version
    ways = [way for way, first in WAYS.items() if first <= opset]
    initializers = list(model.graph.initializer)
    for tensor in initializers:
        if tensor.data_type not in FLOATS or dice.random() > SHARE or tensor.name.endswith(NARROW):
            continue
        array, way = numpy_helper.to_array(tensor), dice.choice(ways)
        if way == "input":
            if dice.random() < 0.3:
                info = helper.make_tensor_value_info(tensor.name, tensor.data_type, array.shape)
                model.graph.input.append(info)
            continue
        if not array.size:
            continue
        parts = _Parts(tensor.name, array, dice).made(way)
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


def tie(model: ModelProto, dice: random.Random) -> ModelProto:
    """Weights of the same shape become one, which bodies read as well; changes the model."""
    graph = model.graph
    first: dict[tuple[int, ...], str] = {}
    for tensor in list(graph.initializer):
        if tensor.data_type not in FLOATS or tensor.name.endswith(NARROW) or dice.random() < 0.4:
            continue
        array = numpy_helper.to_array(tensor)
        kept = first.setdefault((*array.shape, int((array > 0).all())), tensor.name)
        if kept != tensor.name and tensor.name not in {one.name for one in graph.input}:
            _rename(graph, tensor.name, kept)
            graph.initializer.remove(tensor)
    return model


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, old, new)


Made = tuple[list[NodeProto], dict[str, np.ndarray]]


class _Parts:
    """Nodes that give an array, or nearly that array, under its name, and what they are given; None
    where they cannot."""

    def __init__(self, name: str, array: np.ndarray, dice: random.Random) -> None:
        self.name, self.array, self.dice = name, array, dice
        self.raw, self.other = f"{name}.raw", f"{name}.other"

    def made(self, way: str) -> Made | None:
        return getattr(self, f"_{way}")()  # type: ignore[no-any-return]

    def _node(self, op: str, *weights: str, **attrs: Any) -> list[NodeProto]:
        return [helper.make_node(op, list(weights), [self.name], **attrs)]

    def _shape(self) -> np.ndarray:
        return np.array(self.array.shape, np.int64)

    def _constant(self) -> Made:
        return self._node("Constant", value=numpy_helper.from_array(self.array)), {}

    def _numbers(self) -> Made:
        """As attributes of the node, without a tensor."""
        if not self.array.ndim:
            return self._node("Constant", value_float=float(self.array)), {}
        flat = [float(n) for n in self.array.reshape(-1)]
        if self.array.ndim == 1:
            return self._node("Constant", value_floats=flat), {}
        stored = helper.make_node("Constant", [], [self.raw], value_floats=flat)
        shape = helper.make_node("Constant", [], [self.other], value_ints=self._shape().tolist())
        return [stored, shape, *self._node("Reshape", self.raw, self.other)], {}

    def _identity(self) -> Made:
        return self._node("Identity", self.raw), {self.raw: self.array}

    def _scaled(self) -> Made:
        half = np.asarray(self.array.dtype.type(0.5))
        return self._node("Mul", self.raw, self.other), {
            self.raw: self.array * 2,
            self.other: half,
        }

    def _turned(self) -> Made | None:
        if not self.array.ndim:
            return None
        axes = self.dice.sample(range(self.array.ndim), self.array.ndim)
        back = np.ascontiguousarray(self.array.transpose(np.argsort(axes)))
        nodes = self._node("Transpose", self.raw, perm=axes)
        return nodes, {self.raw: back}

    def _reshaped(self) -> Made:
        nodes = self._node("Reshape", self.raw, self.other)
        return nodes, {self.raw: self.array.reshape(-1), self.other: self._shape()}

    def _halves(self) -> Made | None:
        if not self.array.ndim or self.array.shape[0] < 2:
            return None
        half = self.array.shape[0] // 2
        nodes = self._node("Concat", self.raw, self.other, axis=0)
        return nodes, {self.raw: self.array[:half], self.other: self.array[half:]}

    def _sum(self) -> Made:
        rest = np.round(self.array)  # exact: what is left of a float is a float
        nodes = self._node("Add", self.raw, self.other)
        return nodes, {self.raw: self.array - rest, self.other: rest}

    def _cast(self) -> Made:
        elem = helper.np_dtype_to_tensor_dtype(self.array.dtype)
        return self._node("Cast", self.raw, to=elem), {self.raw: self.array}

    def _filled(self) -> Made:
        """One number everywhere."""
        fill = self.dice.choice((1.0, 0.5, 0.25))
        value = numpy_helper.from_array(np.array([fill], self.array.dtype))
        return self._node("ConstantOfShape", self.raw, value=value), {self.raw: self._shape()}

    def _piece(self) -> Made | None:
        """Of a larger one."""
        if not self.array.ndim:
            return None
        axis = self.dice.randrange(self.array.ndim)
        more = np.concatenate(
            [self.array[:1] * 0 if axis == 0 else self.array * 2, self.array], axis
        )
        start = more.shape[axis] - self.array.shape[axis]
        ends = {f"{self.name}.{key}": np.array([n], np.int64) for key, n in
                (("start", start), ("end", 2**40), ("axis", axis - self.array.ndim))}  # fmt: skip
        return self._node("Slice", self.raw, *ends), {self.raw: more, **ends}

    def _gathered(self) -> Made | None:
        if not self.array.ndim:
            return None
        order = np.array(self.dice.sample(range(len(self.array)), len(self.array)), np.int64)
        nodes = self._node("Gather", self.raw, self.other, axis=0)
        return nodes, {self.raw: self.array[np.argsort(order)], self.other: order}

    def _where(self) -> Made:
        mask = np.array([self.dice.random() < 0.5 for _ in range(self.array.size)])
        mask = mask.reshape(self.array.shape)
        parts = {
            f"{self.name}.mask": mask,
            self.raw: self.array * mask,
            self.other: self.array * ~mask,
        }
        return self._node("Where", *parts), parts

    def _expanded(self) -> Made | None:
        if self.array.ndim < 1:
            return None
        first = self.array[:1]
        return self._node("Expand", self.raw, self.other), {
            self.raw: first,
            self.other: self._shape(),
        }

    def _split(self) -> Made | None:
        """A part, of which the rest is not read."""
        if not self.array.ndim:
            return None
        n = len(self.array)
        node = helper.make_node("Split", [self.raw, self.other], [f"{self.name}.rest", self.name])
        more = np.concatenate([self.array[:1], self.array])
        return [node], {self.raw: more, self.other: np.array([1, n], np.int64)}

    def _bordered(self) -> Made | None:
        """A smaller kernel with zeros around it."""
        if self.array.ndim < 3:
            return None
        sides = np.array([0, 0, *[1] * (self.array.ndim - 2)] * 2, np.int64)
        inner = self.array[(slice(None), slice(None), *[slice(1, -1)] * (self.array.ndim - 2))]
        if not inner.size:
            return None
        return self._node("Pad", self.raw, self.other), {self.raw: inner, self.other: sides}

    def _stretched(self) -> Made | None:
        """A direction of a length: weight norm."""
        if self.array.ndim < 2:
            return None
        axes = np.arange(1, self.array.ndim)
        length = np.sqrt((self.array**2).sum(tuple(axes), keepdims=True))
        norm = helper.make_node("ReduceL2", [self.raw, f"{self.name}.axes"], [f"{self.name}.l"])
        unit = helper.make_node("Div", [self.raw, f"{self.name}.l"], [f"{self.name}.unit"])
        nodes = [norm, unit, *self._node("Mul", f"{self.name}.unit", self.other)]
        return nodes, {self.raw: self.array * 3, self.other: length, f"{self.name}.axes": axes}

    def _dequantized(self) -> Made | None:
        if self.array.ndim < 1 or not np.abs(self.array).max():
            return None
        axes = tuple(range(1, self.array.ndim))
        step = np.maximum(np.abs(self.array).max(axes, keepdims=True), 1e-3) / 127
        whole = np.round(self.array / step).astype(np.int8)
        name, zero = f"{self.name}.step{NARROW}", f"{self.name}.zero"
        flat = step.reshape(-1).astype(np.float32)
        if self.dice.random() < 0.5:
            flat = flat[:1].reshape(())
        nodes = self._node(
            "DequantizeLinear", self.raw, name, zero, **({"axis": 0} if flat.ndim else {})
        )
        return nodes, {self.raw: whole, name: flat, zero: np.zeros(flat.shape, np.int8)}

    def _squeezed(self) -> Made:
        """With an axis more."""
        nodes = self._node("Squeeze", self.raw, self.other)
        return nodes, {self.raw: self.array[None], self.other: np.array([0], np.int64)}

    def _negated(self) -> Made:
        """Twice."""
        nodes = self._node("Neg", self.other)
        neg = helper.make_node("Neg", [self.raw], [self.other])
        return [neg, *nodes], {self.raw: self.array}

    def _looked(self) -> Made:
        """By the shape of another weight."""
        nodes = [
            helper.make_node("Shape", [self.raw], [self.other]),
            *self._node("Reshape", f"{self.name}.flat", self.other),
        ]
        flat = self.array.reshape(-1)
        return nodes, {self.raw: self.array, f"{self.name}.flat": flat}
