"""Make a graph that fails small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from onnx import ModelProto

from tests.campaign.graphs import RandomFile, copied
from tests.campaign.program import Options
from tests.frontends.onnx.build import bodies, nodes_of

__all__ = ["shrink_graph"]


def shrink_graph(file: RandomFile, fails: Callable[[RandomFile], bool]) -> RandomFile:
    """Leave out outputs and nodes, also of bodies and functions, each replaced by one of its
    inputs, while it still fails."""
    for smaller in (
        replace(file, options=Options(dtype=file.options.dtype)),
        *(replace(file, sizes=(one,)) for one in file.sizes),
    ):
        if fails(smaller):
            file = smaller
    changed = True
    while changed:
        changed = False
        for model in _smaller(file.model):
            smaller = replace(file, model=model)
            if fails(smaller):
                file, changed = smaller, True
                break
    return file


def _smaller(model: ModelProto) -> Iterator[ModelProto]:
    if len(model.graph.output) > 1:
        for index in reversed(range(len(model.graph.output))):
            smaller = copied(model)
            del smaller.graph.output[index]
            yield _without_dead(smaller)
    for number, graph in enumerate(bodies(model)):
        for index in reversed(range(len(graph.node))):
            for place in range(len(graph.node[index].input)):
                shorter = _bypassed(model, number, index, place)
                if shorter is not None:
                    yield shorter


def _bypassed(model: ModelProto, number: int, index: int, place: int) -> ModelProto | None:
    """One node less: what reads it reads one of its inputs."""
    graph = list(bodies(model))[number]
    node = graph.node[index]
    stored = {tensor.name for tensor in getattr(graph, "initializer", ())}
    stored |= {one.output[0] for one in graph.node if one.op_type == "Constant"}
    outputs = {one if isinstance(one, str) else one.name for one in graph.output}
    source = node.input[place]
    if not source or source in stored or len(node.output) != 1 or node.output[0] in outputs:
        return None
    gone = node.output[0]
    smaller = copied(model)
    body = list(bodies(smaller))[number]
    del body.node[index]
    for reader in body.node:
        for slot, name in enumerate(reader.input):
            if name == gone:
                reader.input[slot] = source
    return _without_dead(smaller)


def _without_dead(model: ModelProto) -> ModelProto:
    """Without nodes and weights that nothing reads; shapes that were told may be wrong now."""
    graph = model.graph
    while True:
        read = {name for node in nodes_of(model) for name in node.input}
        read |= {
            one if isinstance(one, str) else one.name
            for body in bodies(model)
            for one in body.output
        }
        count = sum(len(body.node) for body in bodies(model))
        for body in bodies(model):
            del body.value_info[:]
            for node in [node for node in body.node if not read.intersection(node.output)]:
                body.node.remove(node)
        if sum(len(body.node) for body in bodies(model)) == count:
            break
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return model
