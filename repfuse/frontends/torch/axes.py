"""How many axes the values of a trace have, where the operations tell.

Data is batched: what a 2-D conv reads has four axes. A value whose count is not known here may
have any, so that nothing that depends on the count is concluded from it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

__all__ = ["count_axes"]

KEEPING_MODULES = (
    nn.Linear, nn.Identity, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm,
    nn.modules.conv._ConvNd,
)  # fmt: skip
KEEPING_FUNCTIONS = {
    F.linear, F.batch_norm, F.layer_norm, torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
}  # fmt: skip
COMBINING = {
    "add", "sub", "mul", "div", "truediv", "iadd", "isub", "imul", "itruediv", "true_divide",
    "add_", "sub_", "mul_", "div_",
}  # fmt: skip


def count_axes(
    graph: fx.Graph, modules: dict[str, nn.Module], keeps: Any, demanded: dict[fx.Node, int]
) -> dict[fx.Node, int]:
    """The count of every node where it is certain.

    keeps: tells whether a node has as many axes as its first argument. demanded: the count that
    some reader of a node demands.
    """
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        count = demanded.get(node)
        if count is None:
            count = _count(node, modules, keeps, found)
        if count is not None:
            found[node] = count
    return found


def _count(
    node: fx.Node, modules: dict[str, nn.Module], keeps: Any, found: dict[fx.Node, int]
) -> int | None:
    source = node.args[0] if node.args else None
    before = found.get(source) if isinstance(source, fx.Node) else None
    name = getattr(node.target, "__name__", str(node.target))
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, nn.Flatten):
            return _flattened(module.start_dim, module.end_dim, before)
        return before if isinstance(module, KEEPING_MODULES) or keeps(node) else None
    if name == "flatten":
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        return _flattened(given.get("start_dim", 0), given.get("end_dim", -1), before)
    if name in ("mean", "sum", "amax"):
        return _reduced(node, before)
    if name in ("view", "reshape", "permute") and not node.kwargs:
        sizes: Any = node.args[1:]
        listed = len(sizes) == 1 and not isinstance(sizes[0], int)
        sizes = sizes[0] if listed else sizes
        return len(sizes) if isinstance(sizes, tuple | list) else None
    if name in ("reshape_as", "view_as") and len(node.args) == 2:
        return found.get(other) if isinstance(other := node.args[1], fx.Node) else None
    if name in COMBINING:
        return _combined(node, found)
    if node.target in KEEPING_FUNCTIONS or name in ("transpose", "chunk") or keeps(node):
        return before
    if node.target is operator.getitem and isinstance(source, fx.Node):
        split = getattr(source.target, "__name__", source.target) in ("split", "chunk")
        return before if split and isinstance(node.args[1], int) else None
    return None


def _flattened(start: Any, end: Any, before: int | None) -> int | None:
    if (start, end) == (1, -1):
        return 2  # whatever stood there: batch and the rest
    if before is None or end != -1 or not isinstance(start, int):
        return None
    return start % before + 1


def _reduced(node: fx.Node, before: int | None) -> int | None:
    names = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    axes = names.get("dim", names.get("axis"))
    if names.get("keepdim", False):
        return before
    listed = axes if isinstance(axes, tuple | list) else (axes,)
    known = before is not None and all(isinstance(axis, int) for axis in listed)
    return before - len(listed) if known and before is not None else None


def _combined(node: fx.Node, found: dict[fx.Node, int]) -> int | None:
    """Broadcasting: as many axes as the longer one has."""
    sources = [part for part in node.args[:2] if isinstance(part, fx.Node)]
    if any(source not in found for source in sources):
        return None
    return max((found[source] for source in sources), default=None)
