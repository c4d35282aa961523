"""Whether a module that is traced by itself may be given options by the code that calls it.

It was traced with its options as flags, on and off. Code that could not be traced may give it
anything; read from its source is whether it gives an option at all.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

from repfuse.frontends.torch.calls import LISTS

__all__ = ["may_be_given"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def may_be_given(
    paths: list[str], modules: dict[str, nn.Module], function: Any, options: list[str]
) -> bool:
    """Whether the modules around one may give its method, here a bound one, one of the options."""
    before = list(inspect.signature(function).parameters).index(options[0])
    for path in paths:
        names = [name for name in path.split(".") if not name.isdecimal()]
        for length in range(path.count(".") + 1):
            owner = modules[".".join(path.split(".")[:length])]
            if isinstance(owner, CONTAINERS) and type(owner).forward in LISTS:
                continue  # they give one argument, or are not called
            if any(_gives(f, names[-1:], before, options) for f in _functions(type(owner))):
                return True
    return False


def _functions(kind: type) -> Iterator[Any]:
    for base in kind.__mro__:
        if base is not object and not base.__module__.startswith("torch."):
            yield from (member for member in vars(base).values() if inspect.isfunction(member))


def _gives(function: Any, names: list[str], before: int, options: list[str]) -> bool:
    calls = _calls_in(inspect.unwrap(function))
    return calls is None or any(
        (called is None or called in names)
        and (count > before or None in keywords or not keywords.isdisjoint(options))
        for called, count, keywords in calls
    )


@cache
def _calls_in(function: Any) -> list[tuple[str | None, float, set[str | None]]] | None:
    """The calls of what may be a module: its name, None where it may be any, how many arguments
    are given by position and which by name."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    local = set(function.__code__.co_varnames) | set(function.__code__.co_cellvars)
    found: list[tuple[str | None, float, set[str | None]]] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func
        if isinstance(name, ast.Attribute) and name.attr in ("forward", "__call__"):
            name = name.value
        if isinstance(name, ast.Name) and name.id not in local:
            continue  # a function
        starred = any(isinstance(each, ast.Starred) for each in node.args)
        count = float("inf") if starred else len(node.args)
        called = name.attr if isinstance(name, ast.Attribute) else None
        found.append((called, count, {keyword.arg for keyword in node.keywords}))
    return found
