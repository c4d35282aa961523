"""The same model as other tools would write it: what is told of its tensors, outputs that are the
same tensor, nodes that nobody reads, and functions that call functions."""

from __future__ import annotations

import random
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from tests.frontends.onnx.evaluate import NARROW

__all__ = ["dress"]

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


def dress(model: ModelProto, dice: random.Random) -> ModelProto:
    """Changes the model itself, and returns it."""
    graph = model.graph
    changes: tuple[tuple[float, Any, Any], ...] = (
        (0.4, _tell, model), (0.3, _repeat, graph), (0.2, _hand_on, graph), (0.2, _show, graph),
        (0.4, _tap, model), (0.2, _forget, graph), (0.2, _name, graph),
    )  # fmt: skip
    for chance, change, part in changes:
        if dice.random() < chance:
            change(part, dice)
    if model.opset_import[0].version < 9 and dice.random() < 0.3:
        model.ir_version = 3
        _declare(graph)
    return model


def _declare(graph: GraphProto) -> None:
    """Every weight is an input, as it had to be before IR version 4."""
    known = {value.name for value in graph.input}
    graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in known
    )


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


def _tap(model: ModelProto, dice: random.Random) -> None:
    """Tensors that lie inside are read once more: for all their numbers, for their shape, or for
    their type; what is made of that is an output, or is read by nobody."""
    graph = model.graph
    found = onnx.shape_inference.infer_shapes(model).graph.value_info
    floats = [value for value in found if value.type.tensor_type.elem_type in FLOATS]
    floats = [value for value in floats if value.type.tensor_type.HasField("shape")]
    floats = [value for value in floats if not value.name.endswith(NARROW)]
    for value in dice.sample(floats, min(len(floats), dice.choice((1, 1, 2)))):
        makers = [i for i, node in enumerate(graph.node) if value.name in node.output]
        taken = {output.name for output in graph.output}
        if len(makers) != 1 or value.name in taken:
            continue
        kind = dice.choice(("itself", "Relu", "Identity", "Shape", "Size", "like", "like", "dead"))
        name = f"{value.name}_tapped"
        if kind == "itself":
            graph.output.append(_copied(value, value.name))
            continue
        op, reads = ("Relu" if kind == "dead" else kind), [value.name]
        made = _copied(value, name)
        if kind == "like":
            if model.opset_import[0].version < 15:
                continue
            op, reads = "CastLike", [graph.input[0].name, value.name]
            made = _copied(graph.input[0], name)
        elif kind in ("Shape", "Size"):
            rank = len(value.type.tensor_type.shape.dim)
            dims = [rank] if kind == "Shape" else []
            made = helper.make_tensor_value_info(name, TensorProto.INT64, dims)
        place = dice.randint(makers[0] + 1, len(graph.node))
        graph.node.insert(place, helper.make_node(op, reads, [name]))
        if kind != "dead":
            graph.output.append(made)


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
