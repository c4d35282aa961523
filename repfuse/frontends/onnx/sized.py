"""Inferred that hang on more than the operators: on computed constants, on sizes of the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, TypeProto

from repfuse.frontends.onnx.constants import Constants
from repfuse.frontends.onnx.scopes import Scope
from repfuse.frontends.onnx.shapes import Dim, Type, read_type, type_proto

__all__ = ["Inferred", "at_sizes", "learn_shapes"]

Inferred: TypeAlias = Mapping[str, Type]

BODIES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
# What the open sizes of the inputs are taken for: that of the batch, those of other axes.
DRAWS = ((2, 96, 32), (3, 97, 6), (1, 163, -30))


def learn_shapes(scope: Scope, folder: Path | None, outer: Constants | None = None) -> Constants:
    """The constants of a scope; on the way, shapes that hang on whole numbers which inference could
    not compute itself.

    Where the inputs have no open sizes, all sizes are asked for, otherwise only their number.
    """
    inputs = [scope.types.get(name) for name in scope.inputs if name not in scope.initializers]
    fixed = all(kind is not None and kind.static is not None for kind in inputs)
    return Constants(scope, folder, outer, partial(_settle, fixed))


def _settle(fixed: bool, constants: Constants, node: NodeProto) -> None:
    """Infer the outputs of one node whose inputs are known by now."""
    types = constants.scope.types
    kinds = [types.get(name) for name in node.output if name]
    if all(kind and (kind.static if fixed else kind.dims) is not None for kind in kinds):
        return
    if node.domain not in ("", "ai.onnx") or any(a.type in BODIES for a in node.attribute):
        return
    try:
        found = _inferred(constants, node)
    except Exception:  # invalid, of a newer kind than the installed onnx knows, or of other sizes
        return
    types.update((name, kind) for name, made in found.items() if (kind := read_type(made)))


def _inferred(constants: Constants, node: NodeProto) -> dict[str, TypeProto]:
    """What the installed onnx says of the outputs of a node; nothing where an input is unknown."""
    scope, given, data = constants.scope, dict[str, TypeProto](), dict[str, TensorProto]()
    for name in filter(None, node.input):
        kind = constants.kind(name) if name in constants else scope.types.get(name)
        if kind is None or not kind.elem:
            return {}
        given[name] = type_proto(kind)
        if name in constants and kind.elem == TensorProto.INT64:
            data[name] = onnx.numpy_helper.from_array(constants.value(name))
    made: dict[str, TypeProto] = onnx.shape_inference.infer_node_outputs(
        onnx.defs.get_schema(node.op_type, scope.opset, ""), node, given, data,
        opset_imports=[onnx.helper.make_opsetid("", scope.opset)], ir_version=scope.ir_version,
    )  # fmt: skip
    return made


def at_sizes(scope: Scope, folder: Path | None) -> list[Inferred]:
    """All shapes that follow from several sizes of the inputs, open ones of one name being one;
    from the only one where none is open. None at all for bodies and functions."""
    kinds = {name: scope.types.get(name) for name in scope.inputs}
    if scope.infer is None:
        return []
    if any(kind is None or kind.dims is None for kind in kinds.values()):
        return []
    given = {name: kind.dims for name, kind in kinds.items() if kind is not None and kind.dims}
    if all(isinstance(dim, int) for dims in given.values() for dim in dims):
        return [scope.types]
    found = list[Inferred]()
    for draw in DRAWS:
        trial = replace(scope, types=scope.infer(_drawn(given, *draw)))
        learn_shapes(trial, folder)
        found.append(trial.types)
    return found


def _drawn(
    given: Mapping[str, Sequence[Dim]], batch: int, size: int, step: int
) -> dict[str, tuple[int, ...]]:
    known: dict[object, int] = {}
    sizes = {}
    for name, dims in given.items():
        drawn = []
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                drawn.append(dim)
                continue
            key = dim if isinstance(dim, str) else (name, axis)
            if key not in known:
                known[key] = batch if axis == 0 else size
                size += step if axis else 0
            drawn.append(known[key])
        sizes[name] = tuple(drawn)
    return sizes
