"""Write a selection into the protobuf that was read: nodes that nobody touched stay byte for byte.

Removed are the nodes of merged values, and the constants and sizes that only those read; what a
user's file held unused stays. New constants become initializers, or Constant nodes where there are
none (functions, and files so old that every initializer has to be an input).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import ml_dtypes
import networkx as nx
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from repfuse.frontends.onnx.constants import PURE
from repfuse.frontends.onnx.emit import Emitted, Names
from repfuse.frontends.onnx.layout import Layout
from repfuse.frontends.onnx.lowering import Lowered
from repfuse.frontends.onnx.norms import bare_node
from repfuse.frontends.onnx.scopes import Scope, free_names
from repfuse.frontends.onnx.shapes import FLOATS
from repfuse.graph import Value
from repfuse.rounding import rounded

__all__ = ["Patched", "Rewrite", "apply_layout", "tensor_proto"]

ANY_CONSTANT = 9  # the opset since which a Constant may hold whole numbers


@dataclass
class Rewrite:
    """One rewritten value: its new nodes, and their constants in the model's own precision."""

    value: Value
    emitted: Emitted
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    elem: int = TensorProto.FLOAT


@dataclass
class Patched:
    """A fused model whose new initializers are not in the protobuf yet.

    added: (values, element type) by name, for every graph that got some.
    """

    model: ModelProto
    added: list[tuple[Scope, dict[str, tuple[np.ndarray, int]]]] = field(default_factory=list)


def apply_layout(
    lowered: Lowered, layout: Layout, rewrites: list[Rewrite], names: Names
) -> dict[str, tuple[np.ndarray, int]]:
    """Edit the graph; returns the new initializers, (values, element type) by name.

    They are not put into the protobuf, so that a large model need not hold them twice. Raises
    networkx.NetworkXUnfeasible, and leaves the graph as it was, where its nodes cannot be ordered,
    or one of them would read what no node makes any more.
    """
    scope = lowered.scope
    at_first = {name for node in scope.protos for name in node.output if name}
    before = _uses(lowered, range(len(scope.protos)), ())
    kept = [index for index in range(len(scope.protos)) if index not in layout.dropped]
    new: list[tuple[int, NodeProto]] = []
    added: dict[str, tuple[np.ndarray, int]] = {}
    inline = scope.is_function or scope.ir_version < 4
    for rewrite in rewrites:
        place = lowered.made_by[rewrite.value][-1]
        tensors = {name: (value, rewrite.elem) for name, value in rewrite.constants.items()}
        for name, integers in rewrite.emitted.exact.items():
            tensors[name] = (integers, int(TensorProto.INT64))
        if inline:
            for name, tensor in tensors.items():
                made = _constant_nodes(name, *tensor, scope.opset, names)
                new += [(place, node) for node in made]
        else:
            added.update(tensors)
        new += [(place, node) for node in rewrite.emitted.nodes]
    new = _once(new)
    stripped = {lowered.made_by[value][-1]: value for value in layout.bare}
    changed = {reader.index for reader in layout.moved} | stripped.keys() | layout.frozen
    changed |= {i for rewrite in rewrites for i in lowered.made_by[rewrite.value] if i in kept}
    originals = {index: _copy(scope.protos[index]) for index in changed}
    for rewrite in rewrites:
        _rename_stale(lowered, rewrite.value, kept, names)
    ones: dict[tuple[int, int], str] = {}
    for index, value in stripped.items():
        size, elem = lowered.graph.nodes[value].channels or 0, _scale_type(lowered, index)
        if inline or (size, elem) not in ones:
            name = ones[size, elem] = names.fresh(f"{lowered.names[value]}.ones")
            tensor = rounded(np.ones(size), FLOATS[elem]), elem
            if inline:
                made = _constant_nodes(name, *tensor, scope.opset, names)
                new += [(index - 1, node) for node in made]
            else:
                added[name] = tensor
        scope.protos[index].CopyFrom(bare_node(scope.protos[index], ones[size, elem]))
    for reader, survivor in layout.moved.items():
        scope.protos[reader.index].input[reader.slot] = lowered.names[survivor]
    for index in layout.frozen.intersection(kept):
        new += [(index - 1, node) for node in _freeze(lowered, index, names)]
    kept = _without_unused(lowered, kept, [node for _, node in new], before)
    ordered = sorted([*((i, scope.protos[i]) for i in kept), *new], key=lambda pair: pair[0])
    nodes = [node for _, node in ordered]
    try:
        nodes = _in_order(nodes, at_first, scope.outputs)
    except nx.NetworkXUnfeasible:
        for index, node in originals.items():
            scope.protos[index].CopyFrom(node)
        raise
    order = {_key(node): rank for rank, node in enumerate(nodes)}
    _drop_constants(lowered, nodes, before)
    for index in sorted(set(range(len(scope.protos))) - set(kept), reverse=True):
        del scope.protos[index]
    scope.protos.extend(node for _, node in new)
    scope.protos.sort(key=lambda node: order[_key(node)])  # moves the nodes, copies nothing
    return added


def _once(new: list[tuple[int, NodeProto]]) -> list[tuple[int, NodeProto]]:
    """New nodes by their places; those that several rewrites ask for at the first one."""
    found: dict[str, tuple[int, NodeProto]] = {}
    for place, node in sorted(new, key=lambda pair: pair[0]):
        found.setdefault(_key(node), (place, node))
    return list(found.values())


def _scale_type(lowered: Lowered, index: int) -> int:
    return lowered.constants.kind(lowered.scope.protos[index].input[1]).elem


def _copy(node: NodeProto) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    return copied


def _key(node: NodeProto) -> str:
    return next((name for name in node.output if name), node.name)


def _rename_stale(lowered: Lowered, value: Value, kept: list[int], names: Names) -> None:
    """A node of several outputs that stays must not give a name that a new node gives."""
    stale = lowered.names[value]
    for index in lowered.made_by[value]:
        node = lowered.scope.protos[index]
        for slot, name in enumerate(node.output):
            if name == stale and index in kept:
                node.output[slot] = names.fresh(f"{stale}.unused")


def _freeze(lowered: Lowered, index: int, names: Names) -> list[NodeProto]:
    """A node that asks for known sizes becomes these; what it needs before it."""
    node = lowered.scope.protos[index]
    name = node.output[0]
    *before, frozen = _constant_nodes(
        name, lowered.constants.value(name), int(TensorProto.INT64), lowered.scope.opset, names
    )
    node.op_type = frozen.op_type
    del node.input[:], node.attribute[:]
    node.input.extend(frozen.input)
    node.attribute.extend(frozen.attribute)
    return before


def _reads(node: NodeProto) -> set[str]:
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found |= free_names(attribute.g)
        for body in attribute.graphs:
            found |= free_names(body)
    return found


def _uses(lowered: Lowered, kept: Iterable[int], new: Iterable[NodeProto]) -> set[str]:
    """All names that something reads."""
    scope, found = lowered.scope, set(lowered.scope.outputs)
    for index in kept:
        found |= scope.reads(index)
    for node in new:
        found |= _reads(node)
    return found


def _without_unused(
    lowered: Lowered, kept: list[int], new: list[NodeProto], before: set[str]
) -> list[int]:
    """The kept nodes without those that nothing reads any more: such as made constants, or the
    sizes and expanded constants of a border."""
    protos = lowered.scope.protos
    counts: dict[str, int] = {}
    reads = {index: _reads(protos[index]) for index in kept}  # of bodies, what is left of them
    for names in [*reads.values(), *(_reads(node) for node in new), lowered.scope.outputs]:
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    unused = set()
    for index in reversed(kept):  # readers come after what they read
        outputs = [name for name in protos[index].output if name]
        pure = protos[index].op_type in PURE and protos[index].domain in ("", "ai.onnx")
        was_read = any(name in before for name in outputs)
        if pure and was_read and not any(counts.get(name) for name in outputs):
            unused.add(index)
            for name in reads[index]:
                counts[name] -= 1
    return [index for index in kept if index not in unused]


def _drop_constants(lowered: Lowered, nodes: list[NodeProto], before: set[str]) -> None:
    """Take out the initializers that only removed nodes read, and what was said of lost tensors."""
    scope = lowered.scope
    used = set(scope.outputs).union(*(_reads(node) for node in nodes))
    if not scope.is_function:
        inputs = set(scope.inputs)
        stored = scope.holder.initializer
        for place in range(len(stored) - 1, -1, -1):
            name = stored[place].name
            if name in before and name not in used and name not in inputs:
                del stored[place]
        existing = {*scope.initializers, *scope.inputs}
    else:
        existing = set(scope.inputs)
    existing.update(name for node in nodes for name in node.output)
    described = scope.holder.value_info
    gone = [v for v in described if v.name not in existing and v.name in _known(lowered)]
    for value in gone:
        described.remove(value)


def _known(lowered: Lowered) -> set[str]:
    return set(lowered.names.values()) | set(lowered.constants.made_by)


def _in_order(nodes: list[NodeProto], before: set[str], outputs: list[str]) -> list[NodeProto]:
    """The nodes in an order that runs: the given one, where it does.

    before: what the nodes of the graph made. Raises networkx.NetworkXUnfeasible where there is no
    order, or none of the nodes makes what is read of that.
    """
    made = {name for node in nodes for name in node.output if name}
    needed, late, seen = set(outputs), False, set[str]()
    for node in nodes:
        reads = _reads(node)
        late = late or not seen.issuperset(reads & made)
        needed |= reads
        seen.update(node.output)
    if (needed & before) - made:
        raise nx.NetworkXUnfeasible
    return _topological(nodes) if late else nodes


def _topological(nodes: list[NodeProto]) -> list[NodeProto]:
    """The nodes in an order that runs, as close to the given one as can be.

    Raises networkx.NetworkXUnfeasible where there is none.
    """
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(nodes)))
    maker = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    for place, node in enumerate(nodes):
        graph.add_edges_from((maker[name], place) for name in _reads(node) if name in maker)
    return [nodes[place] for place in nx.lexicographical_topological_sort(graph)]


def _constant_nodes(
    name: str, values: np.ndarray, elem: int, opset: int, names: Names
) -> list[NodeProto]:
    """A constant; before opset 9, whole numbers come from floats."""
    if opset >= ANY_CONSTANT or elem in FLOATS:
        proto = tensor_proto(name, values, elem)
        return [helper.make_node("Constant", [], [name], value=proto)]
    real = names.fresh(f"{name}.real")
    proto = tensor_proto(real, np.asarray(values, np.float64), int(TensorProto.DOUBLE))
    return [
        helper.make_node("Constant", [], [real], value=proto),
        helper.make_node("Cast", [real], [name], to=elem),
    ]


def tensor_proto(name: str, values: np.ndarray, elem: int) -> TensorProto:
    """A tensor of an element type that NumPy may not have: bfloat16 comes as float32."""
    if elem == TensorProto.BFLOAT16:
        values = values.astype(ml_dtypes.bfloat16)
    assert elem not in FLOATS or elem == TensorProto.BFLOAT16 or values.dtype.kind == "f"
    return onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
