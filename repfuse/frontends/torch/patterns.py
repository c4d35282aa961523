"""The ways in which a forward method may be called, as far as its signature tells.

Tracing fixes what an argument that is no tensor decides. A required argument is traced as a
tensor. One that may be None, by its default or because the code asks, is traced without and with
a tensor, a flag as True and as False, in every combination up to a limit. What any other default
may decide stays unknown, and the method that takes it is not written again.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice
from types import CodeType
from typing import Any

from torch import nn

__all__ = ["Pattern", "none_checked", "patterns_of"]

LIMIT = 8


@dataclass(frozen=True)
class Pattern:
    """One way to call a method: `given` arguments are tensors, the others have these values."""

    arguments: dict[str, Any]
    given: frozenset[str]
    keyword_only: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        return ", ".join(
            f"{name}={'a tensor' if name in self.given else value!r}"
            for name, value in self.arguments.items()
        )

    def split(self, arguments: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments as they are passed: by position, and those that must have a name."""
        plain = [value for name, value in arguments.items() if name not in self.keyword_only]
        named = {name: value for name, value in arguments.items() if name in self.keyword_only}
        return plain, named


def patterns_of(module: nn.Module) -> tuple[list[Pattern], str | None]:
    """The patterns to trace, the one with all defaults first, and what stays unknown."""
    unknown = None
    base: dict[str, Any] = {}
    given: set[str] = set()
    keyword_only: set[str] = set()
    optional: list[str] = []
    flags: list[str] = []
    maybe_none = none_checked(module.forward)
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            if parameter.kind is parameter.VAR_POSITIONAL:
                unknown = f"forward takes *{name}"
            else:
                unknown = f"forward takes **{name}"
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            keyword_only.add(name)
        default = parameter.default
        base[name] = None if default is parameter.empty else default
        if name in maybe_none and (default is None or default is parameter.empty):
            optional.append(name)
        elif default is parameter.empty:
            given.add(name)
        elif isinstance(default, bool):
            flags.append(name)
        else:
            unknown = f"what {name}={default!r} of forward decides is fixed by tracing"

    found = [
        Pattern(
            base | {name: not base[name] for name in chosen if name in flags},
            frozenset(given) | {name for name in chosen if name in optional},
            frozenset(keyword_only),
        )
        for chosen in _subsets([*optional, *flags])
    ]
    if len(found) > LIMIT:
        unknown = unknown or "forward has more combinations of optional arguments than are traced"
    return found[:LIMIT], unknown


def none_checked(function: Callable[..., Any]) -> set[str]:
    """The parameters that may be None: by their default, or because the code asks for it."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    parameters = inspect.signature(function).parameters.items()
    by_default = {name for name, parameter in parameters if parameter.default is None}
    return by_default if code is None else by_default | _compared_with_none(code)


@cache
def _compared_with_none(code: CodeType) -> frozenset[str]:
    """The local names that the code compares with None."""
    names, steps = set[str](), list(dis.get_instructions(code))
    for load, test, *more in zip(steps, steps[1:], steps[2:], strict=False):
        if load.opname.startswith("LOAD_FAST"):
            direct = test.opname.endswith(("_IF_NONE", "_IF_NOT_NONE"))
            compared = test.argval is None and test.opname == "LOAD_CONST"
            if direct or (compared and more[0].opname == "IS_OP"):
                names.add(load.argval)
    return frozenset(names)


def _subsets(names: list[str]) -> list[tuple[str, ...]]:
    """All subsets, the smallest first; of many names only the first few subsets."""
    subsets = (part for size in range(len(names) + 1) for part in combinations(names, size))
    return list(islice(subsets, LIMIT + 1))
