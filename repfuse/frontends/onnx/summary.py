"""A model in numbers: nodes by type, parameters, and the MACs of its convs and Linears."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onnx import AttributeProto, ModelProto

from repfuse.frontends.onnx.files import graphs_of
from repfuse.frontends.onnx.patch import Patched
from repfuse.frontends.onnx.shapes import FLOATS

__all__ = ["Summary", "summarise"]


@dataclass(frozen=True)
class Summary:
    """nodes: how many of each type, in all graphs; Constant nodes are weights and left out."""

    nodes: Counter[str]
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        return {"nodes": dict(sorted(self.nodes.items())), "parameters": self.parameters}


def summarise(model: ModelProto | Patched) -> Summary:
    """Count what is in a model."""
    proto = model if isinstance(model, ModelProto) else model.model
    nodes: Counter[str] = Counter()
    parameters = 0
    for graph in graphs_of(proto):
        parameters += _floats(getattr(graph, "initializer", ()))
        for node in graph.node:
            if node.op_type == "Constant":
                tensors = [a.t for a in node.attribute if a.type == AttributeProto.TENSOR]
                parameters += _floats(tensors)
            else:
                nodes[node.op_type] += 1
    if isinstance(model, Patched):
        for _, added in model.added:
            parameters += sum(values.size for values, elem in added.values() if elem in FLOATS)
    return Summary(nodes, parameters)


def _floats(tensors: Iterable[Any]) -> int:
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in FLOATS)
