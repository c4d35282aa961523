"""Evaluate ONNX models in float64, and compare them.

onnx.reference runs the nodes, except for those below, which torch computes: onnx.reference is slow
at them, or wrong (grouped ConvTranspose, BatchNormalization of opset 9). Nothing is shared with
the probes of the frontend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch.nn import functional as F

from tests.frontends.onnx.build import bodies

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


# What torch computes. Padding is explicit, so that every form of it is the same here.


def _auto(
    kind: str | None, sides: list[int], x: Any, reach: list[int], stride: list[int]
) -> list[tuple[int, int]]:
    rank = len(reach)
    if kind in (None, "NOTSET"):
        return list(zip(sides[:rank], sides[rank:], strict=True))
    if kind == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, step, span in zip(x.shape[2:], stride, reach, strict=True):
        total = max(0, (-(-size // step) - 1) * step + span - size)
        small, large = total // 2, total - total // 2
        found.append((small, large) if kind == "SAME_UPPER" else (large, small))
    return found


def _padded(x: Any, sides: list[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    return F.pad(
        torch.from_numpy(np.ascontiguousarray(x)),
        [n for side in sides[::-1] for n in side],
        value=value,
    )


CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class Conv(OpRun):
    def _run(self, x: Any, weight: Any, bias: Any = None, **attrs: Any) -> tuple[Any]:
        rank, kernel = x.ndim - 2, weight.shape[2:]
        dilation = attrs["dilations"] or [1] * rank
        stride = attrs["strides"] or [1] * rank
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        sides = _auto(attrs["auto_pad"], attrs["pads"] or [0] * 2 * rank, x, reach, stride)
        made = CONVS[rank](
            _padded(x, sides),
            torch.tensor(weight),
            None if bias is None else torch.tensor(bias),
            stride,
            0,
            dilation,
            attrs["group"] or 1,
        )
        return (made.numpy(),)


class ConvTranspose(OpRun):
    def _run(self, x: Any, weight: Any, bias: Any = None, **attrs: Any) -> tuple[Any]:
        rank = x.ndim - 2
        extra = attrs["output_padding"] or [0] * rank
        made = TRANSPOSED[rank](
            torch.tensor(x),
            torch.tensor(weight),
            None,
            attrs["strides"] or [1] * rank,
            0,
            0,
            attrs["group"] or 1,
            attrs["dilations"] or [1] * rank,
        )
        sides = _crop(attrs, x.shape[2:], made.shape[2:], extra)
        # What the crop takes from the high side, output_padding gives back, with zeros beyond.
        made = F.pad(
            made, [n for i in range(rank)[::-1] for n in (-sides[i], extra[i] - sides[rank + i])]
        )
        if bias is not None:
            made = made + torch.tensor(bias).reshape(-1, *[1] * rank)
        return (made.numpy(),)


def _crop(attrs: Mapping[str, Any], size: Any, full: Any, extra: list[int]) -> list[int]:
    """What a ConvTranspose takes away on each side; the odd one on the low side, unless it pads as
    SAME_UPPER."""
    rank, kind = len(extra), attrs["auto_pad"] or "NOTSET"
    wanted = attrs["output_shape"]
    if wanted is None and kind in ("NOTSET", "VALID"):
        return list(attrs["pads"] or [0] * 2 * rank) if kind == "NOTSET" else [0] * 2 * rank
    if wanted is None:
        wanted = [s * n for s, n in zip(attrs["strides"] or [1] * rank, size, strict=True)]
    total = [a + b - c for a, b, c in zip(full, extra, wanted, strict=True)]
    small = [n // 2 for n in total]
    large = [n - less for n, less in zip(total, small, strict=True)]
    return [*small, *large] if kind == "SAME_UPPER" else [*large, *small]


class BatchNormalization(OpRun):
    def _run(self, x: Any, *parameters: Any, **attrs: Any) -> tuple[Any, ...]:
        scale, shift, mean, variance = (p.reshape(-1, *[1] * (x.ndim - 2)) for p in parameters)
        running: list[Any] = []
        if attrs.get("training_mode"):
            places = (0, *range(2, x.ndim))
            own = x.mean(places, keepdims=True)[0], x.var(places, keepdims=True)[0]
            keep = attrs["momentum"]
            running = [
                (old * keep + new * (1 - keep)).reshape(-1)
                for old, new in zip((mean, variance), own, strict=True)
            ]
            mean, variance = own
        made = (x - mean) / np.sqrt(variance + attrs["epsilon"]) * scale + shift
        return (made, *running[: len(self.onnx_node.output) - 1])


class AveragePool(OpRun):
    def _run(self, x: Any, **attrs: Any) -> tuple[Any]:
        kernel = attrs["kernel_shape"]
        rank = len(kernel)
        dilation = attrs.get("dilations") or [1] * rank
        stride = attrs["strides"] or [1] * rank
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        sides = _auto(attrs["auto_pad"], attrs["pads"] or [0] * 2 * rank, x, reach, stride)
        assert not attrs.get("ceil_mode")
        border = _padded(np.ones(x.shape), sides, float(bool(attrs["count_include_pad"])))
        taps = torch.ones(x.shape[1], 1, *kernel, dtype=torch.float64)
        total, count = (
            CONVS[rank](values, taps, None, stride, 0, dilation, x.shape[1])
            for values in (_padded(x, sides), border)
        )
        return ((total / count).numpy(),)


class Dropout(OpRun):
    def _run(
        self, x: Any, ratio: Any = None, training: Any = False, **attrs: Any
    ) -> tuple[Any, ...]:
        assert not training
        return (x, np.ones(x.shape, bool))[: len(self.onnx_node.output)]


class Pad(OpRun):
    def _run(
        self, x: Any, amounts: Any = None, fill: Any = None, axes: Any = None, **attrs: Any
    ) -> tuple[Any]:
        amounts = attrs["pads"] if amounts is None else [int(n) for n in amounts]
        axes = range(x.ndim) if axes is None else [int(n) % x.ndim for n in axes]
        pairs = dict(
            zip(axes, zip(amounts[: len(axes)], amounts[len(axes) :], strict=True), strict=True)
        )
        sides = [pairs.get(axis, (0, 0)) for axis in range(x.ndim)]
        if attrs["mode"] in (None, "constant"):
            return (_padded(x, sides, float(fill or attrs.get("value") or 0.0)).numpy(),)
        return (np.pad(x, sides, attrs["mode"]),)


class Mean(OpRun):
    def _run(self, *inputs: Any) -> tuple[Any]:
        return (sum(inputs) / len(inputs),)


class QuantizeLinear(OpRun):
    def _run(self, x: Any, step: Any, zero: Any, **attrs: Any) -> tuple[Any]:
        return (np.clip(np.rint(x / step) + zero, -128, 127).astype(np.int8),)


class DequantizeLinear(OpRun):
    def _run(self, x: Any, step: Any, zero: Any, **attrs: Any) -> tuple[Any]:
        shape = [-1 if step.ndim and i == attrs.get("axis", 1) else 1 for i in range(x.ndim)]
        return ((x.astype(np.float32) - zero.reshape(shape)) * step.reshape(shape),)


class Twist(OpRun):
    """Of a domain that only these tests know."""

    op_domain = "odd.domain"

    def _run(self, x: Any) -> tuple[Any]:
        return (np.sin(x),)


OWN = [
    Twist,
    QuantizeLinear,
    DequantizeLinear,
    Conv,
    ConvTranspose,
    BatchNormalization,
    AveragePool,
    Dropout,
    Pad,
    Mean,
]
