"""Evaluate ONNX models in float64, and compare them.

onnx.reference runs the nodes, except for those of `evaluate_ops`, at which it is slow or wrong
(grouped ConvTranspose, BatchNormalization of opset 9). Nothing is shared with the probes of the
frontend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto
from onnx.reference import ReferenceEvaluator

from tests.frontends.onnx.build import bodies
from tests.frontends.onnx.evaluate_ops import OWN

__all__ = [
    "NARROW",
    "SIZES",
    "Sizes",
    "assert_same",
    "difference",
    "evaluate",
    "in_double",
    "outputs_of",
    "random_feeds",
    "runner_of",
    "with_floats",
]

Sizes = Mapping[str, int]

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
NARROW = ".float"  # ends the names of what stays in float32: steps of quantization, for one
# Odd, small and not square; one sample and several.
SIZES: tuple[Sizes, ...] = (
    {"N": 1, "D": 5, "H": 5, "W": 7},
    {"N": 2, "D": 4, "H": 9, "W": 6},
    {"N": 3, "D": 7, "H": 6, "W": 11},
)


def in_double(model: ModelProto) -> ModelProto:
    """The same model with every float tensor in float64; no value is rounded."""
    return with_floats(model, TensorProto.DOUBLE)


def with_floats(model: ModelProto, elem: int) -> ModelProto:
    """The same model with every float tensor of one type, but for those named as NARROW."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for graph in bodies(wide):
        for tensor in getattr(graph, "initializer", ()):
            _widen(tensor, elem)
        if isinstance(graph, onnx.GraphProto):
            for value in (*graph.input, *graph.output):
                _widen_type(value, elem)
        for value in graph.value_info:
            _widen_type(value, elem)
        _between(graph, elem)
        for node in graph.node:
            if node.op_type == "ConstantOfShape" and not node.attribute:
                zero = onnx.numpy_helper.from_array(_as(np.zeros(1), elem))
                node.attribute.append(onnx.helper.make_attribute("value", zero))
            for attribute in list(node.attribute):
                _widen_attribute(node, attribute, elem)
    return wide


def _between(graph: Any, elem: int) -> None:
    """A Cast before and after what quantizes, which stays in float32."""
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type == "QuantizeLinear" and not node.input[0].endswith(NARROW):
            cast = onnx.helper.make_node(
                "Cast", [node.input[0]], [node.output[0] + NARROW], to=TensorProto.FLOAT
            )
            node.input[0] = cast.output[0]
            graph.node.append(cast)
        if node.op_type == "DequantizeLinear" and not node.output[0].endswith(NARROW):
            name = node.output[0]
            node.output[0] = name + NARROW
            graph.node.append(node)
            node = onnx.helper.make_node("Cast", [name + NARROW], [name], to=elem)
        graph.node.append(node)


def _as(values: np.ndarray, elem: int) -> np.ndarray:
    return values.astype(onnx.helper.tensor_dtype_to_np_dtype(elem))


def _widen(tensor: TensorProto, elem: int) -> None:
    if tensor.data_type in FLOATS and not tensor.name.endswith(NARROW):
        values = _as(onnx.numpy_helper.to_array(tensor), elem)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _widen_type(value: ValueInfoProto, elem: int) -> None:
    kind = value.type
    if kind.tensor_type.elem_type in FLOATS and not value.name.endswith(NARROW):
        kind.tensor_type.elem_type = elem


def _widen_attribute(node: onnx.NodeProto, attribute: AttributeProto, elem: int) -> None:
    if node.output[0].endswith(NARROW):
        return
    if attribute.type == AttributeProto.TENSOR:
        _widen(attribute.t, elem)
    elif node.op_type == "Cast" and attribute.i in FLOATS:
        attribute.i = elem
    elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        values = _as(np.array(onnx.helper.get_attribute_value(attribute)), elem)
        node.attribute.remove(attribute)
        node.attribute.append(
            onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(values))
        )


def evaluate(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, all floats in float64."""
    return outputs_of(runner_of(model), feeds)


def runner_of(model: ModelProto) -> ReferenceEvaluator:
    wide = in_double(model)
    _fill_in(wide)
    # Inside of functions, onnx.reference does not look at new_ops.
    return ReferenceEvaluator(onnx.inliner.inline_local_functions(wide), new_ops=OWN)


def _fill_in(model: ModelProto) -> None:
    """Calls say what they leave out: the inliner drops the defaults of functions."""
    functions = {(function.domain, function.name): function for function in model.functions}
    for graph in bodies(model):
        for node in graph.node:
            if function := functions.get((node.domain, node.op_type)):
                given = {attribute.name for attribute in node.attribute}
                node.attribute.extend(a for a in function.attribute_proto if a.name not in given)


def outputs_of(runner: ReferenceEvaluator, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(output) for output in runner.run(None, dict(feeds))]


def random_feeds(model: ModelProto, sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """An input for every input; a dimension by its name, other unknown ones are 6."""
    noise = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value or sizes.get(dim.dim_param, 6) for dim in kind.shape.dim]
        feed = noise.standard_normal(shape)
        if kind.elem_type == TensorProto.BOOL:
            feeds[value.name] = feed > 0
        elif kind.elem_type == TensorProto.INT64:
            feeds[value.name] = noise.integers(1, 4, shape)
        else:
            feeds[value.name] = feed
    return feeds


def difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest value of each output; NaN is no number."""
    assert len(left) == len(right), f"{len(left)} outputs against {len(right)}"
    worst = 0.0
    for mine, theirs in zip(left, right, strict=True):
        assert mine.shape == theirs.shape, f"shape {mine.shape} against {theirs.shape}"
        if mine.dtype.kind != "f":
            worst = max(worst, 0.0 if (mine == theirs).all() else np.inf)
            continue
        assert np.isfinite(mine).all() and np.isfinite(theirs).all(), "a value is not finite"
        scale = max(float(np.abs(mine).max(initial=0.0)), 1e-6)  # x - x is zero, or nearly
        worst = max(worst, float(np.abs(mine - theirs).max(initial=0.0)) / scale)
    return worst


def assert_same(
    model: ModelProto,
    fused: ModelProto,
    bound: float = 1e-9,
    sizes: Iterable[Sizes] = SIZES,
) -> None:
    """Both models give the same outputs for random inputs of several sizes."""
    original, candidate = runner_of(model), runner_of(fused)
    for seed, given in enumerate(sizes):
        feeds = random_feeds(model, given, seed)
        gap = difference(outputs_of(original, feeds), outputs_of(candidate, feeds))
        assert gap <= bound, f"relative difference {gap:.3g} at {dict(given)}"
