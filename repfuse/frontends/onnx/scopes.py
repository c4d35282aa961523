"""The graphs of a model: the main one, the bodies of If, Loop and Scan, and the functions.

onnx-graphsurgeon reads them; what is written goes into the very protobuf that was read, since
graphsurgeon's own export drops the doc strings, the metadata and some attributes of nodes that
nobody touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

from repfuse.frontends.onnx.shapes import Type, infer_types

__all__ = ["Scope", "free_names", "node_label", "scopes_of"]

Holder: TypeAlias = GraphProto | FunctionProto


@dataclass
class Scope:
    """One graph and what is known of its tensors.

    nodes and protos are the same nodes in the same order: as onnx-graphsurgeon reads them, and
    as they stand in the file. types holds what shape inference tells; nothing that the file
    merely claims of a tensor between two nodes. captured: names that the bodies inside of a node
    read from here, by the index of the node. infer: the types for other sizes of the inputs, of the
    main graph only.
    """

    path: str
    holder: Holder
    nodes: list[Any]
    opset: int
    ir_version: int
    types: dict[str, Type]
    parent: Scope | None = None
    captured: dict[int, set[str]] = field(default_factory=dict)
    infer: Callable[[Mapping[str, tuple[int, ...]] | None], dict[str, Type]] | None = None

    @property
    def protos(self) -> Any:
        return self.holder.node

    @property
    def is_function(self) -> bool:
        return isinstance(self.holder, FunctionProto)

    @property
    def initializers(self) -> dict[str, Any]:
        return {} if self.is_function else {t.name: t for t in self.holder.initializer}

    @property
    def inputs(self) -> list[str]:
        return [i if isinstance(i, str) else i.name for i in self.holder.input]

    @property
    def outputs(self) -> list[str]:
        return [o if isinstance(o, str) else o.name for o in self.holder.output]

    def reads(self, index: int) -> set[str]:
        """All tensor names that a node needs, those of its bodies among them."""
        return {name for name in self.protos[index].input if name} | self.captured.get(index, set())

    def label(self, index: int) -> str:
        """What a report calls a node."""
        name = node_label(self.protos[index])
        return f"{self.path}/{name}" if self.path else name


def node_label(node: NodeProto) -> str:
    """The name of a node, or of its first output where it has none."""
    name: str | bytes = node.name or next((name for name in node.output if name), node.op_type)
    text = name if isinstance(name, str) else name.decode("utf-8", "replace")
    return text if text.isprintable() else ascii(text)[1:-1]


def scopes_of(model: ModelProto) -> list[Scope]:
    """Every graph of a model, outer ones before inner ones."""
    gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL
    surface = gs.import_onnx(model)
    opset = _opset(model.opset_import, 0)
    main = Scope("", model.graph, list(surface.nodes), opset, model.ir_version, {})
    main.infer = partial(infer_types, main.holder, model, {}, False)
    main.types = main.infer(None)
    found = [main, *_inner(main, model)]
    for function, proto in zip(surface.functions, model.functions, strict=True):
        own = _opset(proto.opset_import, opset)
        scope = Scope(proto.name, proto, list(function.nodes), own, model.ir_version, {})
        scope.types = infer_types(proto, model, {}, True)
        found += [scope, *_inner(scope, model)]
    return found


def _inner(scope: Scope, model: ModelProto) -> list[Scope]:
    """The bodies inside the nodes of a graph, and theirs."""
    found: list[Scope] = []
    for index, proto in enumerate(scope.protos):
        for attribute in proto.attribute:
            if attribute.type != AttributeProto.GRAPH:
                continue
            free = free_names(attribute.g)
            scope.captured.setdefault(index, set()).update(free)
            path = f"{scope.label(index)}.{attribute.name}"
            nodes = list(scope.nodes[index].attrs[attribute.name].nodes)
            inner = Scope(path, attribute.g, nodes, scope.opset, scope.ir_version, {}, scope)
            outside = {name: kind for name in free if (kind := _outer_type(scope, name))}
            inner.types = infer_types(attribute.g, model, outside, True)
            found += [inner, *_inner(inner, model)]
    return found


def _outer_type(scope: Scope | None, name: str) -> Type | None:
    while scope is not None:
        if name in scope.types:
            return scope.types[name]
        if name in scope.initializers:
            tensor = scope.initializers[name]
            return Type(tensor.data_type, tuple(tensor.dims))
        scope = scope.parent
    return None


def free_names(graph: GraphProto) -> set[str]:
    """The names that a body reads and does not define."""
    defined = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    defined |= {t.values.name for t in graph.sparse_initializer}
    read: set[str] = {value.name for value in graph.output}
    for node in graph.node:
        read.update(name for name in node.input if name)
        for body in _bodies(node):
            read |= free_names(body)
        defined.update(node.output)
    return read - defined


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _opset(imports: Any, default: int) -> int:
    versions = [entry.version for entry in imports if entry.domain in ("", "ai.onnx")]
    return max(versions, default=default) or onnx.defs.onnx_opset_version()
