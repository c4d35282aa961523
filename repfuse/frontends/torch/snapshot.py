"""Remember the attributes of every module, so that a trace leaves none of its traces."""

from __future__ import annotations

import math
import operator
from collections import OrderedDict, deque
from collections.abc import Iterator, MutableMapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["Snapshot", "held_by", "is_same_table", "may_hold", "parts_of"]

LEAVES = (
    type(None), bool, int, float, complex, str, bytes, tuple, frozenset, type, torch.dtype,
    torch.device, torch.Tensor, nn.Module, FunctionType, BuiltinFunctionType, MethodType,
    ModuleType,
)  # fmt: skip
QUICK = {bool, int, float, str, tuple, type(None), FunctionType}
TABLES = {dict, OrderedDict}
BASE = frozenset(vars(nn.Module()))  # parameters, buffers, children, hooks
DEPTH = 5
COUNTERS = 65536  # numbers: larger arrays are tables that nobody counts in


class Snapshot:
    """The attributes of all modules, with what lies in their containers and plain objects.

    names: which of them had changed when they were put back, by the id of the module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._saved: list[tuple[nn.Module, dict[str, Any], dict[str, _Content | _Numbers]]] = []
        self._tables: list[tuple[nn.Module, Any, tuple[Any, ...]]] = []
        self._versions: list[tuple[nn.Module, torch.Tensor, int]] = []
        self.names: dict[int, set[str]] = {}
        for module in model.modules():
            attributes = dict(module.__dict__)
            self._tables += [
                (module, value, tuple(value.items()) if value else ())
                for name, value in attributes.items()
                if name in BASE and type(value) in TABLES
            ]
            contents = {
                name: content
                for name, value in attributes.items()
                if name not in BASE
                and type(value) not in QUICK
                and (content := _content(value, DEPTH)) is not None
            }
            self._saved.append((module, attributes, contents))
            for table in (module._parameters, module._buffers):
                for tensor in table.values():
                    if tensor is None or type(tensor) not in (nn.Parameter, torch.Tensor):
                        continue
                    if not tensor.is_inference():
                        self._versions.append((module, tensor, tensor._version))

    def restore(self) -> set[int]:
        """Put everything back, once; the ids of the modules whose attributes had changed."""
        changed = set()
        for module, attributes, contents in self._saved:
            now = module.__dict__
            if not contents and _is_same(now, attributes):
                continue
            added = [name for name in now if name not in attributes]
            lost = {
                name
                for name, value in attributes.items()
                if name not in now or now[name] is not value
            }
            foreign = [name for name in added if not isinstance(now[name], FunctionType)]
            if added or lost:
                now.clear()
                now.update(attributes)
            names = {*lost, *foreign}
            names |= {name for name, content in contents.items() if content.restore()}
            if names:
                changed.add(id(module))
                self.names[id(module)] = names
        for module, table, items in self._tables:
            if (table or items) and not is_same_table(table, items):
                table.clear()
                table.update(items)
                changed.add(id(module))
        for module, tensor, version in self._versions:
            if tensor._version != version:
                changed.add(id(module))
        self._saved, self._tables, self._versions = [], [], []
        return changed


def held_by(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of a module that may hold something: no plain values, no torch tables."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if name not in BASE and (type(value) not in QUICK or (type(value) is tuple and value))
    ]


def may_hold(value: Any) -> bool:
    """Whether a value is no plain one, which holds nothing."""
    return type(value) not in QUICK or (type(value) is tuple and bool(value))


def _is_same(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether both hold the same objects under the same names, in the same order."""
    return (
        len(now) == len(before)
        and all(map(operator.is_, now.values(), before.values()))
        and list(now) == list(before)
    )


def is_same_table(table: dict[str, Any], items: tuple[tuple[str, Any], ...]) -> bool:
    """Whether a table still holds these very objects, in this order."""
    return len(table) == len(items) and all(
        name == other and value is part
        for (name, value), (other, part) in zip(table.items(), items, strict=True)
    )


class _Content:
    """What a container or object held: its parts by key, and what these held."""

    def __init__(self, holder: Any, depth: int) -> None:
        self.holder = holder
        self.parts = dict(parts_of(holder))
        self.inner = [
            content
            for part in self.parts.values()
            if type(part) not in QUICK and (content := _content(part, depth - 1)) is not None
        ]

    def restore(self) -> bool:
        """Put everything back; whether anything was different."""
        changed = sum(content.restore() for content in self.inner) > 0  # all of them
        now = dict(parts_of(self.holder))
        if len(now) == len(self.parts) and all(
            key in now and now[key] is part for key, part in self.parts.items()
        ):
            return changed
        if isinstance(self.holder, set):
            self.holder.clear()
            self.holder.update(self.parts.values())
        elif isinstance(self.holder, list | deque):
            self.holder.clear()
            self.holder.extend(self.parts.values())
        else:
            table = self.holder if isinstance(self.holder, MutableMapping) else vars(self.holder)
            table.clear()
            table.update(self.parts)
        return True


class _Numbers:
    """The numbers of a tensor or an array that is no parameter or buffer, as they were."""

    def __init__(self, holder: torch.Tensor | np.ndarray) -> None:
        self.holder: Any = holder
        self.before: Any = holder.detach().clone() if isinstance(holder, torch.Tensor) else None
        if self.before is None:
            self.before = holder.copy()  # type: ignore[union-attr]

    def restore(self) -> bool:
        if isinstance(self.holder, torch.Tensor):
            same = torch.equal(self.holder, self.before)
        else:
            same = bool(np.array_equal(self.holder, self.before))
        if not same:
            with torch.no_grad():
                self.holder[...] = self.before
        return not same


def _content(value: Any, depth: int) -> _Content | _Numbers | None:
    if isinstance(value, torch.Tensor | np.ndarray):
        plain = type(value) in (torch.Tensor, np.ndarray) and depth > 0
        real = plain and not getattr(value, "is_meta", False)
        return _Numbers(value) if real and math.prod(value.shape) <= COUNTERS else None
    holds = isinstance(value, set | list | deque | MutableMapping) or hasattr(value, "__dict__")
    return None if not holds or not depth or isinstance(value, LEAVES) else _Content(value, depth)


def parts_of(holder: Any) -> Iterator[tuple[Any, Any]]:
    """What a container or an object holds, by key; nothing for anything else."""
    if isinstance(holder, LEAVES):
        return
    if isinstance(holder, set):
        yield from ((id(part), part) for part in holder)
    elif isinstance(holder, list | deque):
        yield from enumerate(holder)
    elif isinstance(holder, MutableMapping):
        yield from holder.items()
    elif hasattr(holder, "__dict__"):
        yield from vars(holder).items()
