"""What a name may stand for while a method is read that was not traced.

A method is read for one module of one model, so a name stands for objects that are there: modules,
weights, functions. What a method is given, and what is computed, is no object of the model.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

__all__ = [
    "LISTS",
    "NOTHING",
    "Bound",
    "Box",
    "Closure",
    "Made",
    "Super",
    "Text",
    "Thing",
    "Usual",
    "Values",
    "Weight",
    "boxed",
    "elements",
    "found_in",
    "is_torch",
    "member_of",
    "origin",
    "things",
]

Values: TypeAlias = frozenset[Any]
NOTHING: Values = frozenset()
LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
DEPTH = 4


@dataclass(frozen=True)
class Thing:
    """A module, a function, a class."""

    key: int
    it: Any = field(compare=False, repr=False)


@dataclass(frozen=True)
class Text:
    """A string, perhaps with * for what is not known of it."""

    it: str


@dataclass(frozen=True)
class Weight:
    """A parameter or a buffer; name: by which it was looked up, "" if it was listed."""

    key: int
    name: str
    tensor: torch.Tensor = field(compare=False, repr=False)
    owner: nn.Module | None = field(compare=False, repr=False)


@dataclass(frozen=True)
class Bound:
    """A function that is looked up on an object, or on a class (owner is None)."""

    key: int
    owner: Any
    name: str
    function: Any = field(compare=False, repr=False)


@dataclass(frozen=True)
class Usual:
    """A method of torch's own of a module, or a method of a list."""

    owner: Any
    name: str


@dataclass(frozen=True)
class Closure:
    """A function inside a method."""

    key: tuple[int, int]
    node: Any = field(compare=False, repr=False)
    scope: Any = field(compare=False, repr=False)


@dataclass(frozen=True)
class Super:
    owner: Any
    above: tuple[type, ...]


@dataclass(frozen=True)
class Made:
    """An object that the code makes of a class of its own."""

    kind: type


@dataclass(frozen=True)
class Box:
    """A list, a tuple, a dict, an iterator."""

    inside: Values


def boxed(values: Values) -> Values:
    """A list of the values; one of lists of lists of lists is as flat as one of lists."""
    return frozenset({Box(values)}) if values and _depth(values) < DEPTH else values


def _depth(values: Values) -> int:
    return max((1 + _depth(each.inside) for each in values if isinstance(each, Box)), default=0)


def elements(values: Values) -> Values:
    """What a loop over any of the values gets."""
    found: set[Any] = set()
    for each in values:
        if isinstance(each, Box):
            found |= each.inside
        elif isinstance(each, Thing) and isinstance(each.it, LISTS):
            found |= {Thing(id(child), child) for child in each.it.children()}
        elif isinstance(each, Weight):
            found.add(each)
    return frozenset(found)


def found_in(values: Values) -> Iterator[Any]:
    """The values, and those in lists of them."""
    for each in values:
        if isinstance(each, Box):
            yield from found_in(each.inside)
        else:
            yield each


def things(value: Any, depth: int = DEPTH) -> Values:
    """What an object of Python is, of the objects that matter."""
    if isinstance(value, str):
        return frozenset({Text(value)})
    if isinstance(value, torch.Tensor):
        return frozenset({Weight(id(value), "", value, None)})
    if isinstance(value, dict | list | tuple | set | frozenset):
        parts = [*value, *value.values()] if isinstance(value, dict) else list(value)
        inside = [things(part, depth - 1) for part in parts[:1000] if depth]
        return boxed(frozenset().union(*inside))
    if isinstance(value, types.MethodType):
        return frozenset(
            {
                Bound(id(value.__func__), owner, value.__name__, value.__func__)
                for owner in things(value.__self__)
            }
        )
    if isinstance(value, functools.partial):
        return things(value.func)
    if inspect.isfunction(getattr(value, "__wrapped__", None)) and not inspect.isfunction(value):
        return things(value.__wrapped__)
    if callable(value) or isinstance(value, types.ModuleType):
        return frozenset({Thing(id(value), value)})
    return NOTHING


def origin(value: Any) -> str:
    """The package that a function or a class comes from."""
    owner = getattr(value, "__self__", None)
    names = [getattr(each, "__module__", None) for each in (value, owner, type(owner))]
    if isinstance(owner, types.ModuleType):
        names.insert(1, owner.__name__)
    return next((str(name) for name in names if name), "").partition(".")[0]


def is_torch(value: Any) -> bool:
    """Whether a function or a class is torch's own."""
    return origin(value) == "torch"


def member_of(owner: Any, kinds: tuple[type, ...], name: str) -> tuple[Values, list[Any]] | None:
    """What a class has under a name: values, and functions of which the result is meant."""
    for kind in kinds:
        if name not in vars(kind):
            continue
        member = vars(kind)[name]
        if isinstance(member, property | functools.cached_property):
            getter = member.fget if isinstance(member, property) else member.func
            return NOTHING, [] if getter is None else [getter]
        if isinstance(member, staticmethod):
            return things(member.__func__), []
        if isinstance(member, classmethod):
            of = Thing(id(kinds[0]), kinds[0])
            return frozenset({Bound(id(member.__func__), of, name, member.__func__)}), []
        if isinstance(member, functools.partialmethod):
            member = member.func
        if not inspect.isfunction(member):  # lru_cache
            member = getattr(member, "__wrapped__", member)
        if is_torch(kind) or kind is object:
            return frozenset({Usual(owner, name)}) if callable(member) else NOTHING, []
        if inspect.isfunction(member):
            return frozenset({Bound(id(member), owner, name, member)}), []
        return things(member), []
    return None
