"""Norms that scale and shift what they normalised: as two values, of which the first may remain.

    norm(x)  =  scale * norm_bare(x) + bias

Where every reader of a LayerNormalization or RMSNormalization absorbs both, the node gets a scale
of ones, which its operator asks for, and no bias.

The same written out (ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add) stays whole:
runtimes run it as one kernel, and know it by its Mul and Add. ONNX Runtime took 1.6 times as long
without them.
"""

from __future__ import annotations

from onnx import NodeProto

from repfuse.arrays import Array
from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.graph import Opaque
from repfuse.operators import Affine

__all__ = ["KERNEL", "bare_node", "is_shifted_norm", "is_written_out", "norm"]

KERNEL = "a norm that is written out: runtimes run it as one kernel with its scale and bias"


def norm(lowering: Lowering, node: NodeView) -> str | bool:
    """LayerNormalization and RMSNormalization over the last axis, with constant weights."""
    names = node.inputs[1:3]
    constants = lowering.constants
    if not node.single or not lowering.is_value(node.input(0)):
        return False
    if any(lowering.is_value(name) or not constants.precision(name) for name in names if name):
        return False
    value = lowering.value(node.input(0))
    known, ndim = lowering.known(value), lowering.ndim(value)
    arrays = [constants.array(name) for name in names if name]
    channels = arrays[0].shape[0] if arrays[0].shape else 0
    last = int(node.attrs.get("axis", -1)) in (-1, (ndim or 0) - 1)
    fits = all(array.shape == (channels,) for array in arrays)
    if not last or not fits or not channels or known not in (None, (channels, 0)):
        return False
    shift = arrays[1] if len(arrays) > 1 else Array.full((channels,), 0.0)
    affine = Affine(arrays[0], shift, 0)
    if affine.is_identity:
        return False
    lowering.learn(value, constants.kind(names[0]).elem)
    bare = lowering.make(node, "", Opaque(node.op), (value,))
    result = lowering.make(node, node.output, affine, (bare,))
    before, after = lowering.graph.nodes[bare], lowering.graph.nodes[result]
    before.channels, before.rank, before.inner, before.area = channels, 0, False, after.area
    lowering.to.kinds[bare] = lowering.to.kinds[result]
    lowering.to.names[bare] = node.output
    after.within = True
    lowering.to.bare[bare] = result
    return True


def bare_node(proto: NodeProto, ones: str) -> NodeProto:
    """The node with another scale and no bias."""
    made = NodeProto()
    made.CopyFrom(proto)
    del made.input[1:]
    made.input.append(ones)
    return made


def is_written_out(lowering: Lowering, node: NodeView) -> bool:
    """Whether a Mul is the scale of a norm over the last axis that is written out.

    Its operand is a quotient, below it the root of a mean.
    """
    data = [name for name in node.inputs if lowering.is_value(name)]
    if len(data) != 1 or any(_size(lowering, name) is None for name in node.inputs):
        return False
    found = data[0]
    for operator, slot in (("Div", 1), ("Sqrt", 0), ("Add", 0), ("ReduceMean", 0)):
        maker = lowering.made_of(found)
        if maker is None or maker.op != operator:
            return False
        if operator == "ReduceMean":
            axes = maker.attrs.get("axes")
            if axes is None and maker.input(1) in lowering.constants:
                axes = lowering.constants.ints(maker.input(1))
            value = lowering.value(maker.input(0))
            ndim = lowering.ndim(value)
            return list(axes or ()) in ([-1], [(ndim or 0) - 1])
        found = maker.input(slot)
        if operator == "Add" and not lowering.is_value(found):
            found = maker.input(1)
    return False


def is_shifted_norm(lowering: Lowering, node: NodeView, name: str) -> bool:
    """Whether an Add is the bias of a norm that is written out."""
    maker = lowering.made_of(name)
    return maker is not None and maker.op == "Mul" and is_written_out(lowering, maker)


def _size(lowering: Lowering, name: str) -> int | None:
    """How many numbers a constant holds, where it has one axis; 0 for data."""
    if lowering.is_value(name):
        return 0
    shape = lowering.constants.kind(name).static
    return shape[0] if shape is not None and len(shape) == 1 else None
