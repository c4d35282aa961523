"""Remember the attributes of every module, so that a trace leaves none of its traces."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

__all__ = ["Snapshot"]


class Snapshot:
    """The attributes of all modules, containers in them copied one level deep."""

    def __init__(self, model: nn.Module) -> None:
        self._saved: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
        for module in model.modules():
            attributes = dict(module.__dict__)
            containers = {
                name: copy.copy(value)
                for name, value in attributes.items()
                if type(value) in (dict, list, set)
            }
            self._saved.append((module, attributes, containers))

    def restore(self) -> set[int]:
        """Put everything back; the ids of the modules whose attributes had changed."""
        changed = set()
        for module, attributes, containers in self._saved:
            now = module.__dict__
            added = [name for name in now if name not in attributes]
            lost = any(
                name not in now or now[name] is not value for name, value in attributes.items()
            )
            foreign = [name for name in added if not callable(now[name])]
            if added or lost:
                now.clear()
                now.update(attributes)
            if lost or foreign:
                changed.add(id(module))
            for name, before in containers.items():
                value = attributes[name]
                if not _same(value, before):
                    changed.add(id(module))
                    value.clear()
                    value.extend(before) if isinstance(value, list) else value.update(before)
        return changed


def _same(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        return all(key in before and before[key] is value for key, value in now.items())
    if isinstance(now, list):
        return all(a is b for a, b in zip(now, before, strict=True))
    return bool(now == before)
