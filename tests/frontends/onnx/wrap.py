"""Put a whole graph into a function, or into the branches of an If."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

__all__ = ["as_function", "as_if"]


def _outer(model: ModelProto) -> list[ValueInfoProto]:
    outputs = [ValueInfoProto() for _ in model.graph.output]
    for made, given in zip(outputs, model.graph.output, strict=True):
        made.CopyFrom(given)
        made.name = f"outer_{given.name}"
    return outputs


def as_function(model: ModelProto) -> ModelProto:
    """Nothing is known of the shapes in there; the weights are Constant nodes."""
    graph, outputs = model.graph, _outer(model)
    stored = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    inputs, results = [i.name for i in graph.input], [o.name for o in graph.output]
    nodes = [*stored, *graph.node]
    opsets = [*model.opset_import, helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "Part", inputs, results, nodes, model.opset_import)
    call = helper.make_node("Part", inputs, [o.name for o in outputs], domain="local")
    made = helper.make_model(
        helper.make_graph([call], "wrapped", list(graph.input), outputs),
        functions=[function],
        opset_imports=opsets,
    )
    made.ir_version = max(model.ir_version, 8)
    return made


def as_if(model: ModelProto) -> ModelProto:
    """Both branches are the graph, which reads the inputs from outside."""
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    outputs = _outer(model)
    node = helper.make_node(
        "If",
        ["condition"],
        [output.name for output in outputs],
        then_branch=_body(model.graph, "then_"),
        else_branch=_body(model.graph, "else_"),
    )
    graph = helper.make_graph([node], "wrapped", [*model.graph.input, condition], outputs)
    made = helper.make_model(graph, opset_imports=model.opset_import)
    made.ir_version = model.ir_version
    return made


def _body(graph: GraphProto, prefix: str) -> GraphProto:
    """The graph without its inputs, every name of its own with a prefix."""
    body = GraphProto()
    body.CopyFrom(graph)
    body.name = f"{prefix}body"
    del body.input[:]
    own = {name for node in body.node for name in node.output} | {t.name for t in body.initializer}
    for tensor in body.initializer:
        tensor.name = prefix + tensor.name
    for output in body.output:
        output.name = prefix + output.name
    for node in body.node:
        for names in (node.input, node.output):
            names[:] = [prefix + name if name in own else name for name in names]
    return body
