"""Small valid models of several kinds, from which hostile ones are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from tests.frontends.onnx.build import Net
from tests.frontends.onnx.models import network
from tests.frontends.onnx.wrap import as_function, as_if

__all__ = ["SEEDS", "Files", "branches", "external", "placed"]

DIMS = ("N", 4, "H", "W")


@dataclass
class Files:
    """A model and the files beside it, by name."""

    model: ModelProto
    beside: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path, name: str = "in.onnx") -> Path:
        for other, content in self.beside.items():
            (folder / other).write_bytes(content)
        path = folder / name
        path.write_bytes(self.model.SerializeToString())
        return path


def branches() -> ModelProto:
    """Two blocks of parallel branches: what there is to merge."""
    net = Net()
    x = net.block(net.input(dims=DIMS), 4)
    return net.model(net.relu(net.add(net.conv(x, 4, 4), net.conv(x, 4, 4, 1), x)))


def placed(tensor: TensorProto, location: str, offset: object, length: object) -> None:
    """Say that the values of a tensor are in a file; None leaves an entry out."""
    for name in ("raw_data", "float_data", "external_data"):
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", location), ("offset", offset), ("length", length)):
        if entry is not None:
            tensor.external_data.add(key=key, value=str(entry))


def external() -> Files:
    """The same with its weights in a file of their own."""
    model, store = branches(), bytearray()
    for tensor in model.graph.initializer:
        content = onnx.numpy_helper.to_array(tensor).tobytes()
        placed(tensor, "in.data", len(store), len(content))
        store += content
    return Files(model, {"in.data": bytes(store)})


def tokens() -> ModelProto:
    """Parallel Linears of tokens, one of them low-rank."""
    net = Net()
    x = net.input(dims=("N", "T", 8))
    low = net.node("MatMul", net.node("MatMul", x, net.weight(8, 2)), net.weight(2, 8))
    full = net.add(net.node("MatMul", x, net.weight(8, 8)), net.weight(8))
    return net.model(net.relu(net.add(full, low)))


def quantized() -> ModelProto:
    """A conv on dequantized weights, and a float block before it."""
    net = Net()
    x = net.block(net.input(dims=DIMS), 4)
    weight = net.const(net.noise.integers(-99, 99, (4, 4, 3, 3)), elem=TensorProto.INT8)
    scale, zero = net.const(0.01), net.const(0, elem=TensorProto.INT8)
    wide = net.node("DequantizeLinear", weight, scale, zero)
    return net.model(net.node("Conv", x, wide, pads=[1] * 4))


def looped() -> ModelProto:
    """A block that a Loop calls three times."""
    body = Net(prefix="body_")
    body.inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, DIMS),
    ]
    result = body.block("state", 4)
    graph = body.graph(body.node("Identity", "go"), result)
    graph.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    net = Net()
    x = net.input(dims=DIMS)
    count, go = net.const(3, elem=TensorProto.INT64), net.const(True, elem=TensorProto.BOOL)
    return net.model(net.node("Loop", count, go, x, body=graph))


def computed() -> ModelProto:
    """Weights that are computed from constants, and shapes from the input."""
    net = Net()
    x = net.input(dims=DIMS)
    weight = net.node("Mul", net.weight(4, 4, 3, 3), net.node("Sqrt", net.positive(4, 1, 1, 1)))
    zeros = net.node("ConstantOfShape", net.ints(4))
    bias = net.node("Expand", net.node("CastLike", zeros, x), net.node("Shape", net.positive(4)))
    first = net.node("Conv", x, weight, bias, pads=[1] * 4)
    total = net.add(first, net.conv(x, 4, 4, 1))
    grown = net.node("Tile", total, net.ints(1, 2, 1, 1))
    return net.model(net.node("Slice", grown, net.ints(0), net.ints(4), net.ints(1)))


def random_numbers() -> ModelProto:
    """Resize, a pooled branch and random numbers: nodes whose attributes matter."""
    net = Net()
    x = net.input(dims=DIMS)
    pooled = net.node(
        "AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1, strides=[1, 1]
    )
    total = net.add(net.conv(x, 4, 4), pooled)
    scales = net.const(np.array([1, 1, 2, 2]))
    large = net.node("Resize", total, "", scales, mode="nearest")
    return net.model(net.add(large, net.node("RandomNormalLike", large, scale=0.1)))


SEEDS: dict[str, Callable[[], Files]] = {
    "branches": lambda: Files(branches()),
    "external": external,
    "tokens": lambda: Files(tokens()),
    "quantized": lambda: Files(quantized()),
    "function": lambda: Files(as_function(branches())),
    "if": lambda: Files(as_if(branches())),
    "loop": lambda: Files(looped()),
    "computed": lambda: Files(computed()),
    "random": lambda: Files(random_numbers()),
    "float16": lambda: Files(network("float16")),
    "bfloat16": lambda: Files(network("bfloat16")),
    "double": lambda: Files(network("float64")),
}
