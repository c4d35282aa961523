"""Put a whole graph into a function, into the branches of an If, or into the body of a Loop."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

__all__ = ["as_function", "as_if", "as_loop", "body_of"]


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
    inputs, results = [i.name for i in _inputs(model)], [o.name for o in graph.output]
    nodes = [*stored, *graph.node]
    opsets = [*model.opset_import, helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "Part", inputs, results, nodes, model.opset_import)
    call = helper.make_node("Part", inputs, [o.name for o in outputs], domain="local")
    made = helper.make_model(
        helper.make_graph([call], "wrapped", _inputs(model), outputs),
        functions=[*model.functions, function],
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
        then_branch=body_of(model.graph, "then_"),
        else_branch=body_of(model.graph, "else_"),
    )
    graph = helper.make_graph([node], "wrapped", [*_inputs(model), condition], outputs)
    return _around(model, graph)


def as_loop(model: ModelProto) -> ModelProto:
    """The graph runs twice, on the inputs from outside; the results of both are put on top of
    each other."""
    times = helper.make_tensor("times", TensorProto.INT64, [], [2])
    goes_on = helper.make_tensor("goes_on", TensorProto.BOOL, [], [True])
    body, outputs = body_of(model.graph, "loop_"), _outer(model)
    for name, elem in (("loop_turn", TensorProto.INT64), ("loop_go", TensorProto.BOOL)):
        body.input.append(helper.make_tensor_value_info(name, elem, []))
    results = list(body.output)
    del body.output[:]
    body.node.append(helper.make_node("Identity", ["loop_go"], ["loop_still"]))
    body.output.append(helper.make_tensor_value_info("loop_still", TensorProto.BOOL, []))
    body.output.extend(results)
    for output in outputs:
        shape = output.type.tensor_type.shape
        dims = list(shape.dim)
        del shape.dim[:]
        shape.dim.add()
        shape.dim.extend(dims)
    node = helper.make_node(
        "Loop", ["times", "goes_on"], [output.name for output in outputs], body=body
    )
    weights = [times, goes_on]
    return _around(model, helper.make_graph([node], "wrapped", _inputs(model), outputs, weights))


def _around(model: ModelProto, graph: GraphProto) -> ModelProto:
    made = helper.make_model(
        graph, opset_imports=model.opset_import, functions=list(model.functions)
    )
    made.ir_version = model.ir_version
    return made


def body_of(graph: GraphProto, prefix: str) -> GraphProto:
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
    _rename(body, own, prefix)
    return body


def _rename(graph: GraphProto, own: set[str], prefix: str) -> None:
    """Also where bodies inside of it read these."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [prefix + name if name in own else name for name in names]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, own, prefix)
                for output in attribute.g.output:
                    output.name = prefix + output.name if output.name in own else output.name


def _inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Those that have no default."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]
