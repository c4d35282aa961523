"""Copies of a model: the structure alone, its tensors shared; and tensors made its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from repfuse.errors import RepfuseError

__all__ = ["own_tensors", "structure_of"]


def structure_of(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters and buffers are those of the model."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            memo.update((id(tensor), tensor) for tensor in table.values() if tensor is not None)
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
    try:
        return copy.deepcopy(model, memo).eval()
    except Exception as error:
        raise RepfuseError(
            f"{type(model).__name__} cannot be copied ({error}); fuse(model, inplace=True) "
            "works on the model itself"
        ) from error


def own_tensors(copied: nn.Module, original: nn.Module) -> None:
    """Give the copy tensors of its own wherever it still shares them with the original."""
    shared = {id(tensor) for tensor in (*original.parameters(), *original.buffers())}
    memo: dict[int, Any] = {}
    for module in copied.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) in shared:
                    table[name] = copy.deepcopy(tensor, memo)  # type: ignore[assignment]
