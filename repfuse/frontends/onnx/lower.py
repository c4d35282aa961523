"""Read one ONNX graph: every tensor becomes a value, a constant, or something nobody looks into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import onnx_graphsurgeon as gs

from repfuse.areas import Shapes
from repfuse.frontends.onnx import (
    arithmetic,
    layers,
    moves,
    norms,
    pieces,
    shuffles,
    stacks,
)
from repfuse.frontends.onnx.constants import Constants
from repfuse.frontends.onnx.lowering import Lowered, Lowering, Metadata, NodeView
from repfuse.frontends.onnx.ranks import spatial_ranks
from repfuse.frontends.onnx.scopes import Scope
from repfuse.frontends.onnx.sized import at_sizes, learn_shapes
from repfuse.graph import Opaque

__all__ = ["lower"]

Handler: TypeAlias = Callable[[Lowering, NodeView], str | bool]


def _reshape(lowering: Lowering, node: NodeView) -> str | bool:
    """The begin of a channel shuffle, or of a round trip."""
    return shuffles.reshape(lowering, node) or moves.move(lowering, node)


ALL_NEEDED = {"Add", "Concat", "Div", "MatMul", "Mean", "Mul", "Sub", "Sum"}
HANDLERS: dict[str, Handler] = {
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "BatchNormalization": layers.batch_norm,
    "AveragePool": layers.average_pool,
    "Pad": layers.pad,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "LayerNormalization": norms.norm,
    "RMSNormalization": norms.norm,
    "Add": arithmetic.add,
    "Sum": arithmetic.add,
    "Sub": arithmetic.sub,
    "Mul": arithmetic.mul,
    "Div": arithmetic.div,
    "Neg": arithmetic.neg,
    "Mean": arithmetic.mean,
    "Identity": arithmetic.identity,
    "Dropout": arithmetic.identity,
    "Concat": pieces.concat,
    "Split": pieces.split,
    "SplitToSequence": pieces.split_to_sequence,
    "Slice": pieces.slice_,
    "Gather": pieces.gather,
    "Transpose": moves.move,
    "Reshape": _reshape,
    "Flatten": moves.move,
    "Unsqueeze": stacks.unsqueeze,
    "ReduceMean": stacks.reduce,
    "ReduceSum": stacks.reduce,
}
# The input of which only the shape matters, or only the type.
METADATA = {"Shape": 0, "Size": 0, "CastLike": 1}
OLDEST = 7  # before, operands were broadcast by other rules, and modes were attributes
QUANTIZED = "a quantized operator: its numbers are integers, which a fold would have to round"


def lower(
    scope: Scope, folder: Path | None, outer: Constants | None = None, shapes: Shapes = ()
) -> Lowered:
    """The compiler's graph of one scope; folder: where external data lies; shapes: those of the
    inputs, for the cost model."""
    constants = learn_shapes(scope, folder, outer)
    lowered = Lowered(scope, constants)
    ranks = spatial_ranks(scope, constants)
    _Walk(lowered, ranks, partial(at_sizes, scope, folder), shapes).run()
    return lowered


class _Walk(Lowering):
    """Walks the nodes in the order of the file, which is topological."""

    def run(self) -> None:
        scope = self.scope
        for name in scope.inputs:
            reason = self.constants.why_not(name)
            if name not in self.constants:
                self.make(None, name, Opaque(reason or "input"), ())
        self._find_readers()
        for index in range(len(scope.protos)):
            node = self.view(index)
            self._note_metadata(node)
            if index in self.done or self._is_constant(node):
                continue
            self._lower(node)
        for name in scope.outputs:
            if self.is_value(name):
                self.graph.pin(self.value(name), "it is an output of the graph")
        moves.show(self)
        for value in (*self.to.bare, *self.to.bare.values()):
            # A bias is an Add after a MatMul, in the norm and in a Gemm it costs nothing.
            self.graph.nodes[value].apart = self.to.kinds[value].ndim != 2

    def _is_constant(self, node: NodeView) -> bool:
        return any(name in self.constants for name in node.outputs if name)

    def _find_readers(self) -> None:
        for index in range(len(self.scope.protos)):
            for name in self.scope.reads(index):
                self.readers.setdefault(name, []).append(index)
            self.makers.update((name, index) for name in self.scope.protos[index].output if name)

    def only_reader(self, node: NodeView) -> NodeView | None:
        readers = self.readers.get(node.output, [])
        if len(readers) != 1 or node.output in self.scope.outputs:
            return None
        proto = self.scope.protos[readers[0]]
        twice = Counter(proto.input)[node.output] != 1 or proto.domain not in ("", "ai.onnx")
        return None if twice else self.view(readers[0])

    def read_late(self, node: NodeView, whole: bool) -> None:
        self._note_metadata(node)
        if whole and not self._is_constant(node):
            self._lower(node)

    def _note_metadata(self, node: NodeView) -> None:
        """Shape and Size read only the shape, CastLike's second input only the type."""
        slot = self._metadata_slot(node)
        if slot is not None and node.input(slot) in self.to.hidden:
            return  # the shape is known, and nobody else asks for it
        if slot is not None and self.is_value(node.input(slot)):
            value, known = self.value(node.input(slot)), self._is_constant(node)
            about_shape = node.op != "CastLike"
            self.to.metadata.append(
                Metadata(node.index, slot, value, about_shape, known and about_shape)
            )

    def _metadata_slot(self, node: NodeView) -> int | None:
        return METADATA.get(node.op) if self.is_ours(node.index) else None

    def _lower(self, node: NodeView) -> None:
        if self.opset < OLDEST:
            self.opaque(node, f"an operator of opset {self.opset}: convert the model to {OLDEST}")
            return
        handler = HANDLERS.get(node.op) if self.is_ours(node.index) else None
        if node.op.startswith("QLinear") or node.op.endswith("Integer"):
            self.opaque(node, QUANTIZED)
            return
        slot = self._metadata_slot(node)
        if slot is not None and node.outputs and node.output:
            rest = [n for i, n in enumerate(node.inputs) if i != slot and self.is_value(n)]
            self.make(node, node.output, Opaque(node.op), tuple(map(self.value, rest)))
            return
        refers = any(isinstance(value, gs.Node.AttributeRef) for value in node.attrs.values())
        # Without a value to read; what may be left out otherwise, the handler knows.
        lacks = not node.input(0) or (node.op in ALL_NEEDED and not all(node.inputs))
        if handler is None or refers or lacks or not node.outputs or not node.output:
            self.opaque(node)
            return
        before = len(self.graph.nodes)
        try:
            answer = handler(self, node)
        except Exception as error:  # what is not understood stays as it is
            self.to.errors.append(f"{self.scope.label(node.index)} is not read: {error!r}")
            answer = False
        if answer is True:
            if node.op not in moves.MOVES and len(self.graph.nodes) == before + 1:
                moves.pull(self, node, before)
            return
        assert len(self.graph.nodes) >= before
        self.opaque(node, answer or None)
