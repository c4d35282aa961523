"""Build small ONNX models node by node, with weights that hide no mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

__all__ = ["IMAGE", "Dims", "Net", "bodies", "nodes_of", "operators"]

Dims = Sequence[int | str | None]

IMAGE: Dims = ("N", 8, "H", "W")
# The newest IR version that goes with an opset is not needed: what runs with 17 runs with 8.
IR_VERSION = 8


class Net:
    """A model in the making. Whatever adds a tensor returns its name.

    Weights are normal / sqrt(fan-in), scales uniform in [0.5, 1.5] with a random sign, variances
    uniform in [0.5, 2]; all of them seeded.
    """

    def __init__(self, opset: int = 17, prefix: str = "", seed: int = 0) -> None:
        self.opset = opset
        self.prefix = prefix
        self.noise = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.imports = {"": opset}
        self._count = 0

    def name(self, wish: str = "t") -> str:
        self._count += 1
        return f"{self.prefix}{wish}{self._count}"

    def input(self, name: str = "x", dims: Dims = IMAGE, elem: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem, list(dims)))
        return name

    # Constants.

    def const(self, values: npt.ArrayLike, name: str = "", elem: int = TensorProto.FLOAT) -> str:
        """An initializer."""
        name = name or self.name("c")
        self.weights.append(_tensor(values, name, elem))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, elem=TensorProto.INT64)

    def literal(self, values: npt.ArrayLike, elem: int = TensorProto.FLOAT) -> str:
        """A Constant node."""
        return self.node("Constant", value=_tensor(values, "", elem))

    def weight(self, *shape: int, name: str = "") -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.const(self.noise.standard_normal(shape) / fan_in**0.5, name)

    def scale(self, *shape: int, name: str = "") -> str:
        values = self.noise.uniform(0.5, 1.5, shape) * self.noise.choice([-1.0, 1.0], shape)
        return self.const(values, name)

    def positive(self, *shape: int) -> str:
        return self.const(self.noise.uniform(0.5, 2.0, shape))

    # Nodes.

    def node(self, op: str, *inputs: str, output: str = "", domain: str = "", **attrs: Any) -> str:
        """A node of one output."""
        output = output or self.name()
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attrs))
        return output

    def several(self, op: str, *inputs: str, count: int, **attrs: Any) -> list[str]:
        """A node of several outputs."""
        outputs = [self.name() for _ in range(count)]
        self.nodes.append(helper.make_node(op, inputs, outputs, **attrs))
        return outputs

    def conv(
        self,
        x: str,
        inputs: int = 8,
        outputs: int = 8,
        size: int | Sequence[int] = 3,
        rank: int = 2,
        bias: bool = True,
        **attrs: Any,
    ) -> str:
        """A Conv that keeps the size of its input, unless it is given pads or an auto_pad."""
        kernel = [size] * rank if isinstance(size, int) else list(size)
        weight = self.weight(outputs, inputs // attrs.get("group", 1), *kernel)
        if "pads" not in attrs and "auto_pad" not in attrs:
            attrs["pads"] = [k // 2 for k in kernel] + [(k - 1) // 2 for k in kernel]
        return self.node("Conv", x, weight, *([self.weight(outputs)] if bias else []), **attrs)

    def conv_transpose(
        self,
        x: str,
        inputs: int = 8,
        outputs: int = 8,
        size: int | Sequence[int] = 3,
        rank: int = 2,
        bias: bool = True,
        **attrs: Any,
    ) -> str:
        kernel = [size] * rank if isinstance(size, int) else list(size)
        weight = self.weight(inputs, outputs // attrs.get("group", 1), *kernel)
        extra = [self.weight(outputs)] if bias else []
        return self.node("ConvTranspose", x, weight, *extra, **attrs)

    def bn(self, x: str, channels: int = 8, **attrs: Any) -> str:
        return self.node("BatchNormalization", x, *self.statistics(channels), **attrs)

    def statistics(self, channels: int = 8) -> tuple[str, str, str, str]:
        scale, shift = self.scale(channels), self.weight(channels)
        return scale, shift, self.weight(channels), self.positive(channels)

    def add(self, *terms: str, **attrs: Any) -> str:
        return self.node("Add" if len(terms) == 2 else "Sum", *terms, **attrs)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def block(self, x: str, channels: int = 8) -> str:
        """relu(bn(conv 3x3) + bn(conv 1x1) + bn): one Conv and one Relu afterwards."""
        three = self.bn(self.conv(x, channels, channels, 3, bias=False), channels)
        one = self.bn(self.conv(x, channels, channels, 1, bias=False), channels)
        return self.relu(self.add(self.add(three, one), self.bn(x, channels)))

    # Results.

    def graph(self, *outputs: str, elem: int = TensorProto.FLOAT) -> GraphProto:
        """The graph, whose outputs have no shape."""
        made = [helper.make_tensor_value_info(name, elem, None) for name in outputs]
        return helper.make_graph(self.nodes, "net", self.inputs, made, self.weights)

    def model(self, *outputs: str, ir_version: int = 0) -> ModelProto:
        """The model; its outputs are of the inferred types."""
        imports = [helper.make_opsetid(domain, version) for domain, version in self.imports.items()]
        model = helper.make_model(
            self.graph(*outputs), opset_imports=imports, functions=self.functions
        )
        model.ir_version = ir_version or (IR_VERSION if self.opset <= 17 else model.ir_version)
        known = {value.name: value for value in self.inputs}
        bare = ModelProto()
        bare.CopyFrom(model)
        del bare.graph.output[:]
        found = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph.value_info
        known.update((value.name, value) for value in found)
        for output in model.graph.output:
            if output.name in known:
                output.type.CopyFrom(known[output.name].type)
        return model


def _tensor(values: npt.ArrayLike, name: str, elem: int) -> TensorProto:
    array = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(elem))
    return onnx.numpy_helper.from_array(array, name)


def bodies(model: ModelProto) -> Iterator[Any]:
    """Every graph of a model: the main one, those of its functions, and those inside of nodes."""
    todo: list[Any] = [model.graph, *model.functions]
    while todo:
        graph = todo.pop()
        yield graph
        for node in graph.node:
            todo += [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]


def nodes_of(model: ModelProto) -> list[NodeProto]:
    return [node for graph in bodies(model) for node in graph.node]


def operators(model: ModelProto) -> str:
    """All nodes by type, but for Constant nodes: "Conv", "2 Conv, Relu"."""
    counts = Counter(node.op_type for node in nodes_of(model) if node.op_type != "Constant")
    return ", ".join(f"{n} {op}" if n > 1 else op for op, n in sorted(counts.items()))
