"""Factors of a sample: products of a value with something small that is computed from data.

Shape inference often loses the sizes on the way to a factor. So what computes it is run, from the
values that the product's other side is made of, at two batches and sizes; large weights take part
as zeros, of which only the shape is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from repfuse.factors import DRAWS, NODES, Draw, piece_of, width_of
from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.frontends.onnx.numeric import Runner
from repfuse.frontends.onnx.shapes import FLOATS
from repfuse.graph import Value
from repfuse.operators import Gate

__all__ = ["factor_of"]

PIECES = {
    "Gather", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity",
}  # fmt: skip
# A product that one of these reads may be a term of a sum, or stand before a conv.
READERS = {"Add", "Sum", "Sub", "Mean", "Mul", "Div", "Neg", "BatchNormalization", "Conv"}
SMALL = 64  # elements of a constant that may be an index or a size
SCAN = 9  # the opset from which there is a Scan over any axis


def factor_of(lowering: Lowering, node: NodeView) -> tuple[Value, Gate] | str | None:
    """Which side of a product is a factor of the sample, and the other side; a reason where it
    looks like one and is none."""
    readers = [lowering.scope.protos[index] for index in lowering.readers.get(node.output, ())]
    if not any(reader.op_type in READERS for reader in readers):
        return None
    answer: str | None = None
    for name, factor in (node.inputs, node.inputs[::-1]):
        value = lowering.value(name)
        known = lowering.known(value)
        if known is None or not known[1] or name == factor:
            continue
        run = _Run(lowering, value)
        shapes = [run.shape(factor, draw) for draw in run.draws]
        if any(shape is None for shape in shapes):
            continue
        width = width_of([shape for shape in shapes if shape is not None], run.sizes, *known)
        if isinstance(width, int) and not _has_batch_of(lowering, factor, name):
            width = "the factor is computed from another input, whose batch may be another one"
        if isinstance(width, int) and lowering.opset < SCAN:
            width = f"a kernel for each sample takes a Scan, which opset {lowering.opset} lacks"
        if isinstance(width, int):
            return value, run.gate(factor, width)
        if lowering.graph.is_linear(value):
            answer = width or answer
    return answer


def _has_batch_of(lowering: Lowering, factor: str, name: str) -> bool:
    """Whether all that a factor is computed from has the batch of the tensor that it multiplies.

    As what the tensor is computed from, or by the symbol or number of its first axis.
    """
    own, others = (lowering.origins.get(one, frozenset({one})) for one in (name, factor))
    batches = {_batch(lowering, one) for one in (name, *own)} - {None}
    return all(_batch(lowering, one) in batches for one in others - own)


def _batch(lowering: Lowering, name: str) -> int | str | None:
    kind = lowering.scope.types.get(name)
    return kind.dims[0] if kind is not None and kind.dims else None


class _Run:
    """Runs what computes a factor, on zeros in place of the values that `value` is made of."""

    def __init__(self, lowering: Lowering, value: Value) -> None:
        self.lowering = lowering
        self.images = self._images(value)
        shape = lowering.to.kinds[value].static
        # What is open is drawn also where the value is not: a map is no factor of a (1, C, 1, 1).
        self.draws = DRAWS if shape is None else DRAWS[:1]
        self.sizes: tuple[Draw, ...] = DRAWS if shape is None else ((shape[0], shape[2:]),)
        self._values: dict[Draw, dict[str, np.ndarray] | None] = {}

    def _images(self, value: Value) -> dict[str, Value]:
        """The tensors of the value, of what it is made of by linear operators, and the inputs."""
        lowering, found, todo = self.lowering, dict[str, Value](), [value]
        while todo and len(found) < NODES:
            current = todo.pop()
            known, name = lowering.known(current), lowering.to.names.get(current)
            if name is not None and name not in found and known is not None and known[1]:
                found[name] = current
                if lowering.graph.is_linear(current):
                    todo += lowering.graph.operands(current)
        return found

    def shape(self, name: str, draw: Draw) -> tuple[int, ...] | None:
        values = self._run(name, {}, draw)
        return None if values is None else values[name].shape

    def gate(self, name: str, width: int) -> Gate:
        """The gate, as a piece of another tensor where it is one."""
        lowering = self.lowering
        plain, base = Gate(lowering.value(name), width), name
        while (before := self._whole(base)) is not None:
            base = before
        if base == name or lowering.graph.nodes[lowering.value(base)].inner:
            return plain
        found, pieces = set(), 0
        for draw, (batch, _) in zip(self.draws, self.sizes, strict=True):
            shape = self.shape(base, draw)
            if shape is None or not shape or shape[0] != batch:
                return plain
            numbers = np.arange(float(np.prod(shape))).reshape(shape)
            values = self._run(name, {base: numbers}, draw)
            if values is None:
                return plain
            found.add(piece_of(numbers, values[name], width))
            pieces = numbers[0].size // width
        index = found.pop()
        if found or index is None:
            return plain
        return Gate(plain.value, width, lowering.value(base), index, pieces)

    def _whole(self, name: str) -> str | None:
        """The tensor that another one is a piece or a view of."""
        nodes = self._nodes_of(name)
        if len(nodes) != 1 or nodes[0].op_type not in PIECES or nodes[0].domain:
            return None
        source: str = nodes[0].input[0]
        return source if self.lowering.is_value(source) and source not in self.images else None

    def _nodes_of(self, name: str) -> list[Any]:
        lowering = self.lowering
        value = lowering.to.value_of.get(name)
        indices = () if value is None else lowering.to.made_by[value]
        return [lowering.scope.protos[index] for index in indices]

    def _run(
        self, name: str, given: dict[str, np.ndarray], draw: Draw
    ) -> dict[str, np.ndarray] | None:
        feeds = {**self._zeros(draw), **given}
        nodes, todo, seen = dict[int, Any](), [name], set(feeds)
        lowering = self.lowering
        while todo:
            current = todo.pop()
            if not current or current in seen:
                continue
            seen.add(current)
            if current in lowering.constants:
                feeds[current] = self._constant(current)
                continue
            value = lowering.to.value_of.get(current)
            indices = () if value is None else lowering.to.made_by[value]
            if value is not None and not indices and not self._feed(current, value, draw, feeds):
                return None
            if indices and (last := lowering.makers.get(current, indices[0])) not in indices:
                indices = (*indices, last)  # it is moved after that
            for index in indices:
                nodes[index] = lowering.scope.protos[index]
                todo += lowering.scope.reads(index)
            if value is None or len(nodes) > NODES:
                return None
        try:
            ordered = [nodes[index] for index in sorted(nodes)]
            return Runner(ordered, lowering.opset).run(feeds)
        except Exception:  # sizes that do not fit, or what onnx.reference does not know
            return None

    def _zeros(self, draw: Draw) -> dict[str, np.ndarray]:
        feeds: dict[str, np.ndarray] = {}
        for name, value in self.images.items():
            assert self._feed(name, value, draw, feeds)
        return feeds

    def _feed(self, name: str, value: Value, draw: Draw, feeds: dict[str, np.ndarray]) -> bool:
        """Zeros for a tensor that nothing computes here; whether its shape is known."""
        known, shape = self.lowering.known(value), self.lowering.to.kinds[value].static
        if shape is None and known is not None and known[1]:
            batch, sizes = draw
            shape = (batch, known[0], *sizes[: known[1]])
        if shape is None or self.lowering.to.kinds[value].elem not in FLOATS:
            return False
        feeds[name] = np.broadcast_to(np.float64(0.0), shape)
        return True

    def _constant(self, name: str) -> np.ndarray:
        kind = self.lowering.constants.kind(name)
        large = kind.static is not None and np.prod(kind.static) > SMALL and kind.elem in FLOATS
        if large and kind.static is not None:
            return np.broadcast_to(np.float64(0.0), kind.static)
        return self.lowering.constants.value(name)
