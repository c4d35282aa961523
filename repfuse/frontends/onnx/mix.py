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
    kernels = _Mix(writer, recipe)("kernel", weights, fixed)
    shape = [*conv.weight.shape] if batch is None else [*conv.weight.shape[1:]]
    inputs = [_shaped(writer, kernels, [-1, *shape])]
    if recipe.has_bias:
        biases = [one.bias for one in recipe.convs]
        fixed = None if recipe.constant is None else recipe.constant.bias
        mixture = _Mix(writer, recipe)("bias", biases, fixed)
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

    def __call__(self, wish: str, parts: list[Array], fixed: Array | None) -> str:
        if self.recipe.width > 1:
            return self._by_channel(wish, parts, fixed)
        writer = self.writer
        stacked = parts[0].reshape(1, parts[0].size)
        for part in parts[1:]:
            stacked = stacked.above(part.reshape(1, part.size))
        factors = self._factors()
        product = writer.names.fresh(f"{writer.output}.{wish}s")
        writer.node("MatMul", [factors, writer.constant(f"{wish}_stack", stacked)], product)
        if fixed is None:
            return product
        total = writer.names.fresh(f"{writer.output}.mixed_{wish}")
        constant = writer.constant(f"constant_{wish}", fixed.reshape(1, fixed.size))
        writer.node("Add", [product, constant], total)
        return total

    def _factors(self) -> str:
        """(batch, branches)."""
        writer, recipe = self.writer, self.recipe
        if recipe.base is not None:
            return _shaped(writer, writer.name_of(recipe.base), [-1, len(recipe.gates)])
        columns = [_shaped(writer, writer.name_of(gate.value), [-1, 1]) for gate in recipe.gates]
        if len(columns) == 1:
            return columns[0]
        joined = writer.names.fresh(f"{writer.output}.factors")
        writer.node("Concat", columns, joined, axis=1)
        return joined

    def _by_channel(self, wish: str, parts: list[Array], fixed: Array | None) -> str:
        writer, terms = self.writer, []
        for gate, part in zip(self.recipe.gates, parts, strict=True):
            rows = part.reshape(part.shape[0], part.size // part.shape[0])
            factor = _shaped(writer, writer.name_of(gate.value), [-1, gate.channels, 1])
            product = writer.names.fresh(f"{writer.output}.{wish}")
            writer.node("Mul", [factor, writer.constant(f"{wish}_part", rows)], product)
            terms.append(product)
        if fixed is not None:
            rows = fixed.reshape(fixed.shape[0], fixed.size // fixed.shape[0])
            terms.append(writer.constant(f"constant_{wish}", rows))
        if len(terms) == 1:
            return terms[0]
        total = writer.names.fresh(f"{writer.output}.mixed_{wish}")
        writer.node("Add" if len(terms) == 2 else "Sum", terms, total)
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
