"""What one forward of a model executes, counted without computing it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.numerics import OpCounts, count_ops

__all__ = ["counts", "on_meta", "work"]


def counts(model: nn.Module, inputs: tuple[Any, ...]) -> OpCounts:
    """On the meta device; really, where the model looks at values."""
    try:
        return count_ops(_to_meta(model), *_meta(inputs))
    except Exception:
        return count_ops(model, *inputs)


def work(found: OpCounts) -> int:
    """The linear operators of one forward."""
    return found.convs + found.batch_norms + found.linears + found.adds


def on_meta(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The result's shapes."""
    with torch.no_grad():
        return _to_meta(model).eval()(*_meta(inputs))


def _to_meta(model: nn.Module) -> nn.Module:
    """A copy in float64 without the values, which are not copied on the way."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
        empty = torch.empty_like(tensor, dtype=dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def _meta(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    moved: tuple[Any, ...] = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), inputs)
    return moved
