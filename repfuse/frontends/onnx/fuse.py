"""The verbs that change a model, for one in memory or in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from onnx import ModelProto

from repfuse.areas import Shapes
from repfuse.cost import target_named
from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.files import check_model, read_model
from repfuse.frontends.onnx.plan import Plan, plan_model
from repfuse.frontends.onnx.write import is_external

__all__ = ["fuse", "plan"]

Model: TypeAlias = ModelProto | str | os.PathLike[str]


def plan(model: Model, target: str = "cpu", shapes: Shapes | None = None) -> Plan:
    """Plan the rewrites of an ONNX model; weights are not read, but for vectors and scalars."""
    target_named(target, "onnx")
    if isinstance(model, ModelProto):
        if is_external(model):
            raise RepfuseError(
                "the weights of this ModelProto lie in other files: give the path of the model"
            )
        check_model(model, "the model", Path())
        return plan_model(model, None, "", target, shapes)
    path = Path(model)
    return plan_model(read_model(path), path.parent, path.name, target, shapes)


def fuse(
    model: Model,
    inplace: bool = False,
    probe: bool = True,
    target: str = "cpu",
    shapes: Shapes | None = None,
) -> ModelProto:
    """The model with every exactly mergeable branch merged; a file is read and stays as it is."""
    if inplace and not isinstance(model, ModelProto):
        raise RepfuseError("a file is not fused in place: save what fuse returns")
    made = plan(model, target, shapes)
    return made.apply(inplace=inplace or not isinstance(model, ModelProto), probe=probe)
