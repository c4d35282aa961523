"""Copies of a model: the structure alone, its tensors shared; and tensors made its own."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import nn

from repfuse.errors import RepfuseError
from repfuse.frontends.torch.snapshot import held_by, parts_of

__all__ = ["in_double", "own_tensors", "structure_of", "tensors_by_path"]

SIMPLE = (type(None), bool, int, float, str, torch.dtype, torch.device, type, FunctionType)
SIMPLE_KINDS, TABLES = frozenset(SIMPLE), frozenset((dict, OrderedDict, set, list))
COPYING = ("__deepcopy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__")


def tensors_by_path(modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """All parameters and buffers, by every path that leads to them."""
    found: dict[str, torch.Tensor] = {}
    for path, module in modules.items():
        prefix = f"{path}." if path else ""
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    found[prefix + name] = tensor
    return found


def structure_of(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters and buffers are those of the model."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            memo.update((id(tensor), tensor) for tensor in table.values() if tensor is not None)
        for value in vars(module).values():
            kind = type(value)
            if kind in SIMPLE_KINDS or kind in TABLES:
                continue
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
    try:
        return _copy(model, memo, {}).eval()
    except Exception as error:
        raise RepfuseError(
            f"{type(model).__name__} cannot be copied ({error}); fuse(model, inplace=True) "
            "works on the model itself"
        ) from error


def _copy(module: nn.Module, memo: dict[int, Any], plain: dict[type, bool]) -> nn.Module:
    """What copy.deepcopy does for a module that copies by the default rules, only faster."""
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    kind = type(module)
    if kind not in plain:
        plain[kind] = all(_copies_plainly(kind, name) for name in COPYING)
    if not plain[kind]:
        result: nn.Module = copy.deepcopy(module, memo)
        return result
    copied = memo[id(module)] = kind.__new__(kind)
    attributes = copied.__dict__
    for name, value in vars(module).items():
        kind = type(value)
        if name == "_compiled_call_impl":  # it would call the original; copies are not compiled
            continue
        if kind in SIMPLE_KINDS:
            attributes[name] = value
        elif kind in TABLES and not value:
            attributes[name] = memo.setdefault(id(value), kind())  # modules may share it
        elif isinstance(value, SIMPLE) or _is_simple_tuple(value):
            attributes[name] = value
        elif name == "_modules":
            attributes[name] = {
                child: None if part is None else _copy(part, memo, plain)
                for child, part in value.items()
            }
        elif name in ("_parameters", "_buffers"):
            table = ((key, memo.get(id(tensor), tensor)) for key, tensor in value.items())
            attributes[name] = type(value)(table)
        else:
            attributes[name] = copy.deepcopy(value, memo)
    return copied


def _is_simple_tuple(value: Any) -> bool:
    return type(value) is tuple and all(isinstance(part, SIMPLE) for part in value)


def _copies_plainly(kind: type, name: str) -> bool:
    """Whether the class copies as torch's modules do; theirs only mend what old files lack."""
    method, usual = getattr(kind, name, None), getattr(nn.Module, name, None)
    return method is usual or getattr(method, "__module__", "").startswith("torch.nn.modules.")


def own_tensors(copied: nn.Module, original: nn.Module) -> None:
    """Give the copy tensors of its own wherever it still shares them with the original."""
    shared = {id(tensor) for tensor in (*original.parameters(), *original.buffers())}
    memo: dict[int, Any] = {}
    for module in copied.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if isinstance(tensor, nn.parameter.UninitializedBuffer):
                    made: Any = type(tensor)
                    table[name] = made(device=tensor.device, dtype=tensor.dtype)
                elif tensor is not None and id(tensor) in shared:
                    table[name] = copy.deepcopy(tensor, memo)  # type: ignore[assignment]
    memo.update((id(module), module) for module in copied.modules())
    for module in copied.modules():
        for name, value in list(held_by(module)):
            if _holds(value, shared, 5):
                vars(module)[name] = copy.deepcopy(value, memo)


def _holds(value: Any, tensors: set[int], depth: int) -> bool:
    """Whether a container has one of the tensors somewhere inside."""
    if isinstance(value, torch.Tensor):
        return id(value) in tensors
    if isinstance(value, SIMPLE) or not depth:
        return False
    parts = value if isinstance(value, tuple) else (part for _, part in parts_of(value))
    return any(_holds(part, tensors, depth - 1) for part in parts)


def in_double(module: nn.Module) -> nn.Module:
    """A copy of a layer in float64 on the CPU, in eval mode."""
    memo: dict[int, Any] = {
        id(tensor): nn.Parameter(double) if isinstance(tensor, nn.Parameter) else double
        for tensor in _tensors_of(module)
        for double in (_double(tensor),)
    }
    layer = _copy(module, memo, {}).eval()
    if any(path.endswith("_hooks") and value for path, value in vars(layer).items()):
        layer = layer.double()
    return layer


def _double(tensor: torch.Tensor) -> torch.Tensor:
    kind = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind, copy=True)  # the layer may change its buffers


def _tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    for part in module.modules():
        for table in (part._parameters, part._buffers, vars(part)):
            yield from (value for value in table.values() if isinstance(value, torch.Tensor))
