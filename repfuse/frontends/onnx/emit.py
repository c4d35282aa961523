"""ONNX nodes for operators."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from repfuse.arrays import Array
from repfuse.compiler import Engine
from repfuse.frontends.onnx.forms import way_of
from repfuse.frontends.onnx.lowering import Lowered, Move
from repfuse.frontends.onnx.mix import write_mixed
from repfuse.graph import Value
from repfuse.operators import Affine, Conv, Mixed
from repfuse.select import Choice, Term, is_skip

__all__ = ["Emitted", "Names", "Writer", "batch_of", "emit", "on_tensor", "terms_of"]

MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Names:
    """Hands out tensor and node names that a model does not have yet."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken

    def fresh(self, wish: str) -> str:
        name, count = wish, 1
        while name in self._taken:
            name, count = f"{wish}_{count}", count + 1
        self._taken.add(name)
        return name


@dataclass
class Emitted:
    """What stands for one rewritten value: nodes, and the constants that they read.

    operands: those of them that broadcast against a tensor; exact: whole numbers. moves: by what
    they give, the nodes that move axes; kept: those of the model that are read.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    operands: set[str] = field(default_factory=set)
    exact: dict[str, np.ndarray] = field(default_factory=dict)
    moves: dict[str, Move] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)


def on_tensor(lowered: Lowered, term: Term) -> Term | None:
    """The term as one on a tensor with a name, which the -y of an x - y does not have."""
    node = lowered.graph.nodes[term.source]
    if not node.inner:
        return term
    if is_skip(term) and isinstance(node.producer, Affine):
        return Term(node.producer, *lowered.graph.operands(term.source))
    return None


def terms_of(lowered: Lowered, choice: Choice) -> tuple[Term, ...]:
    """The terms of a choice, all of them on tensors."""
    found = [on_tensor(lowered, term) for term in choice.terms]
    return tuple(term for term in found if term is not None)


def emit(
    lowered: Lowered, engine: Engine, value: Value, choice: Choice, names: Names, elem: int = 0
) -> Emitted:
    """The nodes for a choice; the last one gives the value the name that it had. elem: its element
    type."""
    writer = Writer(lowered, engine, value, names)
    terms, parts = terms_of(lowered, choice), []
    for term in terms:
        way, last = way_of(lowered, value, term), len(terms) == 1
        assert way is not None
        source = way.tensor if way.first else writer.moved(way.copied, way.tensor)
        writer.made.kept += [index for index in way.kept if index not in writer.made.kept]
        if is_skip(term) and not last and not way.first:
            parts.append(source)
            continue
        output = writer.output if last else names.fresh(f"{writer.output}.branch")
        if isinstance(term.operator, Mixed):
            mixed = engine.in_full(term.operator)
            assert isinstance(mixed, Mixed)
            write_mixed(writer, mixed, source, output, batch_of(lowered, value), elem)
            parts.append(output)
            continue
        matrix = _matrix(lowered, value)
        if way.first:
            made = names.fresh(f"{output}.made")
            writer.operator(way.operator, source, made, _matrix(lowered, term.source))
            writer.moved(way.copied, made, output)
        else:
            writer.operator(way.operator, source, output, matrix)
        parts.append(output)
    if len(parts) > 1:
        writer.node("Add" if len(parts) == 2 else "Sum", parts, writer.output)
    return writer.made


def batch_of(lowered: Lowered, value: Value) -> int | None:
    """The size of the batch, None where it is open."""
    dims = lowered.kinds[value].dims
    return dims[0] if dims and isinstance(dims[0], int) else None


def _matrix(lowered: Lowered, value: Value) -> bool:
    """Whether the tensor of a value has two axes: there a Gemm can stand."""
    if value in lowered.forms:
        value = lowered.value_of[lowered.names[value]]
    return lowered.kinds[value].ndim == 2


class Writer:
    def __init__(self, lowered: Lowered, engine: Engine, value: Value, names: Names) -> None:
        self.engine = engine
        self.names = names
        self.opset = lowered.scope.opset
        self.protos, self.moves = lowered.scope.protos, lowered.moves
        self.copies = lowered.copies
        self.output = lowered.names[value]
        self.name_of = lowered.names.__getitem__
        nodes = lowered.made_by[value]
        self.title = lowered.scope.protos[nodes[-1]].name if nodes else ""
        self.made = Emitted()

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        """A node; the one that makes the value takes over the name of the node it replaces."""
        title = self.title
        if title and output != self.output:
            title = self.names.fresh(f"{title}.{op}")
        made = helper.make_node(op, inputs, [output], name=title)
        made.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.made.nodes.append(made)

    def moved(self, indices: tuple[int, ...], source: str, output: str = "") -> str:
        """Copies of nodes that move axes, of another tensor; the name of what they give."""
        for index in indices:
            made = NodeProto()
            made.CopyFrom(self.protos[index])
            target = output if output and index == indices[-1] else ""
            target = target or self._copy_of(index, source)
            made.input[0], made.output[0] = source, target
            if made.name:
                made.name = f"{made.name}.{target}"
            self.made.nodes.append(made)
            self.made.moves[target] = self.moves[index]
            source = target
        return source

    def _copy_of(self, index: int, source: str) -> str:
        """What a copy of a node gives; all that read the same share one."""
        if (index, source) not in self.copies:
            name = self.names.fresh(f"{self.protos[index].output[0]}.moved")
            self.copies[index, source] = name
        return self.copies[index, source]

    def constant(self, wish: str, array: Array) -> str:
        name = self.names.fresh(f"{self.output}.{wish}")
        self.made.arrays[name] = array
        return name

    def integers(self, wish: str, values: list[int]) -> str:
        name = self.names.fresh(f"{self.output}.{wish}")
        self.made.exact[name] = np.array(values, np.int64)
        return name

    def operator(self, operator: Any, source: str, output: str, matrix: bool) -> None:
        if isinstance(operator, Affine):
            self.affine(operator, source, output)
            return
        conv = self.engine.plain(operator)
        assert isinstance(conv, Conv)
        if not conv.rank:
            self.linear(conv, source, output, matrix)
            return
        if conv.pads and conv.border != "zeros":
            source, conv = self.border(conv, source)
        self.conv(conv, source, output)

    def affine(self, affine: Affine, source: str, output: str) -> None:
        shape = (affine.in_channels, *[1] * affine.rank)
        # Numbers may cancel where no structure says so, as in x - x: then they need no node.
        scales = not affine.scale.is_one and bool((affine.scale.numpy() != 1).any())
        shifts = not affine.shift.is_zero and bool((affine.shift.numpy() != 0).any())
        if not scales and not shifts:
            self.node("Identity", [source], output)
            return
        scaled = source
        if scales:
            scaled = output if not shifts else self.names.fresh(f"{output}.scaled")
            factor = self.constant("scale", affine.scale.reshape(*shape))
            self.made.operands.add(factor)
            self.node("Mul", [source, factor], scaled)
        if shifts:
            shift = self.constant("shift", affine.shift.reshape(*shape))
            self.made.operands.add(shift)
            self.node("Add", [scaled, shift], output)

    def linear(self, conv: Conv, source: str, output: str, matrix: bool) -> None:
        if matrix and (conv.has_bias or self.opset >= 11):  # before, a Gemm needs its bias
            inputs = [source, self.constant("weight", conv.weight)]
            if conv.has_bias:
                inputs.append(self.constant("bias", conv.bias))
            self.node("Gemm", inputs, output, transB=1)
            return
        turned = conv.weight.apply(conv.weight.shape[::-1], np.transpose)
        product = self.names.fresh(f"{output}.product") if conv.has_bias else output
        self.node("MatMul", [source, self.constant("weight", turned)], product)
        if conv.has_bias:
            self.node("Add", [product, self.constant("bias", conv.bias)], output)

    def border(self, conv: Conv, source: str) -> tuple[str, Conv]:
        """A Pad node for a border that Conv itself does not make, and the conv without it."""
        padded = self.names.fresh(f"{self.output}.padded")
        lows, highs = zip(*conv.padding, strict=True)
        amounts = [0, 0, *lows, 0, 0, *highs]
        mode = MODES[conv.border]
        if self.opset < 11:
            self.node("Pad", [source], padded, mode=mode, pads=amounts)
        else:
            self.node("Pad", [source, self.integers("pads", amounts)], padded, mode=mode)
        return padded, replace(conv, padding=((0, 0),) * conv.rank, border="zeros")

    def conv(self, conv: Conv, source: str, output: str) -> None:
        lows, highs = zip(*conv.padding, strict=True)
        settings: dict[str, Any] = {
            "dilations": list(conv.dilation),
            "group": conv.groups,
            "kernel_shape": list(conv.kernel_size),
            "strides": list(conv.stride),
        }
        weight = conv.weight
        if conv.transposed:
            extra = [max(0, -high) for high in highs]
            if any(extra):
                settings["output_padding"] = extra
            highs = tuple(max(0, high) for high in highs)
            weight = _turned(conv)
        inputs = [source, self.constant("weight", weight)]
        if conv.has_bias:
            inputs.append(self.constant("bias", conv.bias))
        settings["pads"] = [*lows, *highs]
        kind = "ConvTranspose" if conv.transposed else "Conv"
        self.node(kind, inputs, output, **dict(sorted(settings.items())))


def _turned(conv: Conv) -> Array:
    """The weight of a transposed conv as ONNX has it: (in, out / groups, *kernel_size)."""
    rows, columns = conv.out_channels // conv.groups, conv.weight.shape[1]
    shape = (conv.groups * columns, rows, *conv.kernel_size)

    def turn(weight: np.ndarray) -> np.ndarray:
        grouped = weight.reshape(conv.groups, rows, columns, *conv.kernel_size)
        return grouped.swapaxes(1, 2).reshape(shape)

    return conv.weight.apply(shape, turn)
