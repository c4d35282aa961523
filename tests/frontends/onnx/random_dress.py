"""The same model as other tools would write it: what is told of its tensors, outputs that are the
same tensor, nodes that nobody reads, and functions that call functions."""

from __future__ import annotations

import random

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from tests.frontends.onnx.evaluate import NARROW

__all__ = ["dress"]

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


def dress(model: ModelProto, dice: random.Random) -> ModelProto:
    """Changes the model itself, and returns it."""
    graph = model.graph
    if dice.random() < 0.4:
        _tell(model, dice)
    if dice.random() < 0.3:
        _repeat(graph, dice)
    if dice.random() < 0.2:
        _hand_on(graph, dice)
    if dice.random() < 0.2:
        _show(graph, dice)
    if dice.random() < 0.2:
        _forget(graph, dice)
    if dice.random() < 0.2:
        _name(graph, dice)
    return model


def _tell(model: ModelProto, dice: random.Random) -> None:
    """Shapes of what lies inside, of which some is left out or has names of its own."""
    share = dice.choice((0.3, 1.0))
    found = onnx.shape_inference.infer_shapes(model).graph.value_info
    del model.graph.value_info[:]
    for number, info in enumerate(found):
        if dice.random() > share:
            continue
        kind = info.type.tensor_type
        if dice.random() < 0.1:
            kind.ClearField("shape")
        for place, dim in enumerate(kind.shape.dim):
            if dice.random() < 0.2:
                dim.Clear()
                if dice.random() < 0.5:
                    dim.dim_param = f"unk__{number}_{place}"
        model.graph.value_info.append(info)


def _copied(info: ValueInfoProto, name: str) -> ValueInfoProto:
    made = ValueInfoProto()
    made.CopyFrom(info)
    made.name = name
    return made


def _repeat(graph: GraphProto, dice: random.Random) -> None:
    """An output once more, by way of an Identity."""
    chosen = dice.choice(graph.output)
    name = f"{chosen.name}_again"
    graph.node.append(helper.make_node("Identity", [chosen.name], [name]))
    graph.output.append(_copied(chosen, name))


def _hand_on(graph: GraphProto, dice: random.Random) -> None:
    """An input that is an output, by way of an Identity."""
    stored = {tensor.name for tensor in graph.initializer}
    chosen = dice.choice([value for value in graph.input if value.name not in stored])
    name = f"{chosen.name}_out"
    graph.node.insert(0, helper.make_node("Identity", [chosen.name], [name]))
    graph.output.append(_copied(chosen, name))


def _show(graph: GraphProto, dice: random.Random) -> None:
    """A weight, or its size, is an output."""
    weights = [t for t in graph.initializer if t.data_type in FLOATS and len(t.dims)]
    weights = [t for t in weights if all(t.dims) and not t.name.endswith(NARROW)]
    if not weights:
        return
    chosen = dice.choice(weights)
    op = dice.choice(("Identity", "Shape", "Size", "Neg"))
    name = f"{chosen.name}_shown"
    graph.node.append(helper.make_node(op, [chosen.name], [name]))
    whole = op in ("Shape", "Size")
    dims = {"Shape": [len(chosen.dims)], "Size": []}.get(op, list(chosen.dims))
    elem = TensorProto.INT64 if whole else chosen.data_type
    graph.output.append(helper.make_tensor_value_info(name, elem, dims))


def _forget(graph: GraphProto, dice: random.Random) -> None:
    """A node and a weight that nobody reads."""
    number = dice.randrange(len(graph.node) + 1)
    before = [name for node in graph.node[:number] for name in node.output if name]
    source = dice.choice([*before, graph.input[0].name])
    graph.node.insert(number, helper.make_node("Shape", [source], ["unread"]))
    graph.initializer.append(
        helper.make_tensor("unread.weight", TensorProto.FLOAT, [2], [1.0, 2.0])
    )


def _name(graph: GraphProto, dice: random.Random) -> None:
    """Nodes have names, some of them the same."""
    for number, node in enumerate(graph.node):
        node.name = f"node_{number // 2}" if dice.random() < 0.7 else ""
        node.doc_string = "as written" if dice.random() < 0.2 else ""
