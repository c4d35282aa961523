"""Which arguments a recorded call holds for: expressions that a rewritten method tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from repfuse.frontends.torch.faults import CannotEmit

__all__ = ["HELPERS", "argument_tests", "nodes_in"]


def argument_tests(
    arguments: dict[str, Any], only_tested: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Expressions that are true of the arguments as they were recorded.

    only_tested: those of which the method only asks whether they are true. Other plain values
    are compared, lists and dicts by their length and keys. Where one tensor was passed twice,
    nobody knows which of the two the method read: it must be one again.
    """
    seen: dict[fx.Node, str] = {}
    tests: list[str] = []
    for name, value in arguments.items():
        if name in only_tested and type(value) is bool:
            tests.append(f"bool({name})" if value else f"not {name}")
        else:
            tests += _tests(name, value, seen)
    return tuple(tests)


def _tests(expression: str, value: Any, seen: dict[fx.Node, str]) -> Iterator[str]:
    if isinstance(value, fx.Node):
        first = seen.setdefault(value, expression)
        if first != expression:
            yield f"{expression} is {first}"
    elif value is None:
        yield f"{expression} is None"
    elif not nodes_in(value):
        yield f"_equals({expression}, {_literal(value)})"
    elif isinstance(value, dict):
        yield f"_has_keys({expression}, {_literal(tuple(value))})"
        for key, part in value.items():
            yield from _tests(f"{expression}[{key!r}]", part, seen)
    elif isinstance(value, list | tuple):
        yield f"_has_length({expression}, {len(value)})"
        for index, part in enumerate(value):
            yield from _tests(f"{expression}[{index}]", part, seen)
    else:
        raise CannotEmit(f"the argument {expression} is a {type(value).__name__}")


def _literal(value: Any) -> str:
    """A plain value as source text."""
    if type(value) in (tuple, list):
        parts = ", ".join(_literal(part) for part in value)
        return f"[{parts}]" if type(value) is list else f"({parts}{',' * (len(value) == 1)})"
    if type(value) is float and not math.isfinite(value):
        return f"float({str(value)!r})"
    if type(value) in (int, float, str, bool, type(None)):
        return repr(value)
    raise CannotEmit(f"an argument holds a {type(value).__name__}")


def nodes_in(value: Any) -> list[fx.Node]:
    """The fx nodes inside an argument."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def _has_length(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _has_keys(value: Any, keys: tuple[Any, ...]) -> bool:
    return isinstance(value, dict) and set(value) == set(keys)


def _equals(value: Any, literal: Any) -> bool:
    return not isinstance(value, torch.Tensor) and bool(value == literal)


HELPERS = {"_equals": _equals, "_has_length": _has_length, "_has_keys": _has_keys}
