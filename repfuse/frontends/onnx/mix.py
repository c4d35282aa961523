"""Nodes for a conv whose kernel is mixed for each sample.

A file of a fixed batch runs all samples as the groups of one Conv. The number of groups is an
attribute, so where the batch is open a Scan runs one Conv after the other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnx import GraphProto, TensorProto, helper

from repfuse.arrays import Array
from repfuse.mixing import Recipe, recipe_of
from repfuse.operators import Conv, Mixed

if TYPE_CHECKING:
    from repfuse.frontends.onnx.emit import Writer

__all__ = ["write_mixed"]


def write_mixed(
    writer: Writer, mixed: Mixed, source: str, output: str, batch: int | None, elem: int
) -> None:
    """The nodes for aligned terms; batch: None where it is open."""
    recipe = recipe_of(mixed)
    conv = recipe.convs[0]
    if conv.pads and conv.border != "zeros":
        source, conv = writer.border(conv, source)
    weights = [one.weight for one in recipe.convs]
    fixed = None if recipe.constant is None else recipe.constant.weight
    mix = _Mix(writer, recipe)
    kernels = mix("kernel", weights, fixed)
    shape = [*conv.weight.shape] if batch is None else [*conv.weight.shape[1:]]
    inputs = [_shaped(writer, kernels, [-1, *shape])]
    if recipe.has_bias:
        biases = [one.bias for one in recipe.convs]
        fixed = None if recipe.constant is None else recipe.constant.bias
        mixture = mix("bias", biases, fixed)
        inputs.append(_shaped(writer, mixture, [-1, conv.out_channels] if batch is None else [-1]))
    if batch is None:
        _scan(writer, conv, [source, *inputs], output, elem)
        return
    zeros = [0] * conv.rank  # as many as there are
    if batch > 1:
        source = _shaped(writer, source, [1, batch * conv.in_channels, *zeros])
    settings = _settings(replace(conv, groups=batch * conv.groups), conv.kernel_size)
    result = output if batch == 1 else writer.names.fresh(f"{output}.grouped")
    writer.node("Conv", [source, *inputs], result, **settings)
    if batch > 1:
        _shaped(writer, result, [batch, conv.out_channels, *zeros], output)


class _Mix:
    """Factors times stacked numbers, added up for each sample: (batch, numbers)."""

    def __init__(self, writer: Writer, recipe: Recipe) -> None:
        self.writer = writer
        self.recipe = recipe
        self.factors = self._factors()

    def __call__(self, wish: str, parts: list[Array], fixed: Array | None) -> str:
        writer, recipe = self.writer, self.recipe
        if recipe.width > 1:
            return self._by_channel(wish, parts, fixed)
        factors = writer.constant(f"{wish}_stack", _stacked(parts, 1))
        product = writer.names.fresh(f"{writer.output}.{wish}")
        if fixed is None:
            writer.node("MatMul", [self.factors, factors], product)
        else:
            constant = writer.constant(f"constant_{wish}", fixed.reshape(1, fixed.size))
            writer.node("Gemm", [self.factors, factors, constant], product)
        return product

    def _factors(self) -> str:
        """(batch, branches), or (batch, branches, channels, 1)."""
        writer, recipe = self.writer, self.recipe
        count, width = len(recipe.gates), recipe.width
        more = [width, 1] if width > 1 else []
        if recipe.base is not None:
            return _shaped(writer, writer.name_of(recipe.base), [-1, count, *more])
        columns = []
        for gate in recipe.gates:
            column = _shaped(
                writer, writer.name_of(gate.value), [-1, 1, gate.channels][: 2 + len(more)]
            )
            if gate.channels < width:
                wide = writer.names.fresh(f"{column}.wide")
                writer.node("Expand", [column, writer.integers("width", [1, 1, width])], wide)
                column = wide
            columns.append(column)
        joined = columns[0]
        if len(columns) > 1:
            joined = writer.names.fresh(f"{writer.output}.factors")
            writer.node("Concat", columns, joined, axis=1)
        return _shaped(writer, joined, [-1, count, *more]) if more else joined

    def _by_channel(self, wish: str, parts: list[Array], fixed: Array | None) -> str:
        """The rows of each part by the factors of its channels, and their sum."""
        writer = self.writer
        stack = writer.constant(f"{wish}_stack", _stacked(parts, parts[0].shape[0]))
        product = writer.names.fresh(f"{writer.output}.{wish}s")
        writer.node("Mul", [self.factors, stack], product)
        total = writer.names.fresh(f"{writer.output}.mixed_{wish}")
        if writer.opset < 13:
            writer.node("ReduceSum", [product], total, axes=[1], keepdims=0)
        else:
            axis = writer.integers("branches", [1])
            writer.node("ReduceSum", [product, axis], total, keepdims=0)
        if fixed is None:
            return total
        rows = fixed.reshape(fixed.shape[0], fixed.size // fixed.shape[0])
        result = writer.names.fresh(f"{writer.output}.shifted_{wish}")
        writer.node("Add", [total, writer.constant(f"constant_{wish}", rows)], result)
        return result


def _stacked(parts: list[Array], rows: int) -> Array:
    """(branches, numbers), or (branches, rows, numbers) where a branch has several rows."""
    shape = (1, parts[0].size) if rows == 1 else (1, rows, parts[0].size // rows)
    total = parts[0].reshape(*shape)
    for part in parts[1:]:
        total = total.above(part.reshape(*shape))
    return total


def _shaped(writer: Writer, source: str, shape: list[int], output: str = "") -> str:
    output = output or writer.names.fresh(f"{source}.shaped")
    writer.node("Reshape", [source, writer.integers("shape", shape)], output)
    return output


def _settings(conv: Conv, kernel_size: tuple[int, ...]) -> dict[str, Any]:
    lows, highs = zip(*conv.padding, strict=True)
    return {
        "dilations": list(conv.dilation),
        "group": conv.groups,
        "kernel_shape": list(kernel_size),
        "pads": [*lows, *highs],
        "strides": list(conv.stride),
    }


def _scan(writer: Writer, conv: Conv, inputs: list[str], output: str, elem: int) -> None:
    """One Conv for each sample: the samples with an axis of 1, so that each is a batch of 1."""
    fresh = writer.names.fresh
    single = _axis(writer, "Unsqueeze", inputs[0], fresh(f"{output}.single"))
    names = [fresh(f"{output}.{wish}") for wish in ("sample", "kernel", "bias")[: len(inputs)]]
    result = fresh(f"{output}.one")
    title = fresh(f"{writer.title}.Conv") if writer.title else ""
    node = helper.make_node("Conv", names, [result], name=title)
    settings = _settings(conv, conv.kernel_size)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in settings.items())
    body: GraphProto = helper.make_graph(
        [node],
        fresh(f"{output}.each"),
        [helper.make_tensor_value_info(name, elem or TensorProto.FLOAT, None) for name in names],
        [helper.make_tensor_value_info(result, elem or TensorProto.FLOAT, None)],
    )
    every = fresh(f"{output}.every")
    given = [single, *inputs[1:]]
    writer.node("Scan", given, every, body=body, num_scan_inputs=len(given))
    _axis(writer, "Squeeze", every, output)


def _axis(writer: Writer, op: str, source: str, output: str) -> str:
    """The axis of 1 after that of the batch, made or taken away."""
    if writer.opset < 13:
        writer.node(op, [source], output, axes=[1])
    else:
        writer.node(op, [source, writer.integers("axis", [1])], output)
    return output
