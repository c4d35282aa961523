"""The names of a model's inputs, which a user may give shapes by."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import nn

from repfuse.areas import Shapes
from repfuse.errors import RepfuseError
from repfuse.frontends.torch.calls import Traces

__all__ = ["check_names"]

OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_names(shapes: Shapes, model: nn.Module, traces: Traces) -> None:
    """Raise RepfuseError for the shape of an input that is none.

    Those of children that are traced by themselves are inputs, too; what a forward takes that does
    not say so is not known.
    """
    named = [name for name in shapes if name] if isinstance(shapes, Mapping) else []
    if not named:
        return
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return
    if any(parameter.kind in OPEN for parameter in parameters.values()):
        return
    known = dict.fromkeys(parameters)
    for trace in traces.traces:
        known |= dict.fromkeys(
            str(node.target) for node in trace.graph.nodes if node.op == "placeholder"
        )
    for name in named:
        if name not in known:
            there = ", ".join(map(repr, parameters)) or "none"
            raise RepfuseError(
                f"{type(model).__name__} has no input {name!r}: its inputs are {there}"
            )
