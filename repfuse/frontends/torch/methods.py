"""The methods of a class: which of them users call, which torch calls, and what they are."""

from __future__ import annotations

import functools
import inspect
from functools import cache
from typing import Any

from torch import fx, nn

from repfuse.frontends.torch.calls import Call, Traces, calls_of, is_entry_point
from repfuse.frontends.torch.uses import public_methods
from repfuse.frontends.torch.written import gives_something, takes_data

__all__ = [
    "answering",
    "answers",
    "definitions",
    "entry_points",
    "opened",
    "options_of",
    "torch_calls",
]

# What torch, Python and everybody who uses a model calls of any module.
COMMON = frozenset(dir(nn.Module)) - {"forward", "__call__"} | {"__deepcopy__", "__copy__"}
NEVER = {"__init__", "__new__", "__init_subclass__", "__class_getitem__", "__del__"}


@cache
def entry_points(kind: Any) -> frozenset[str]:
    """What users may call of a class, or look up so that it is called."""
    found = set(public_methods(kind))
    for base in _own(kind):
        for name, member in vars(base).items():
            if name == "__call__" or (isinstance(member, property) and name[:1] != "_"):
                found.add(name)
    return frozenset(found)


@cache
def answering(kind: Any) -> frozenset[str]:
    """The methods that users may give data, for an answer; forward is none of them."""
    names = {
        name
        for base in _own(kind)
        for name, member in vars(base).items()
        if callable(member) or isinstance(member, functools.partialmethod)
    }
    hidden = {name for name in names if name[:1] == "_" and not name.endswith("__")}
    return frozenset(
        name for name in names - hidden - COMMON - NEVER - {"forward"} if answers(kind, name)
    )


@cache
def answers(kind: Any, method: str) -> bool:
    """Whether a method is given data, and gives something."""
    member = inspect.getattr_static(kind, method, None)
    if isinstance(member, property | staticmethod | classmethod | type):
        return False
    if isinstance(member, functools.partialmethod):
        member = member.func
    functions = definitions(kind, method) or ([member] if inspect.isfunction(member) else [])
    return any(gives_something(each) and takes_data(each) for each in functions)


@cache
def torch_calls(kind: Any) -> frozenset[str]:
    """The methods of a class of one's own that torch or Python call of any module."""
    names = {name for base in _own(kind) for name in vars(base)}
    return frozenset(names & COMMON - NEVER - {"__getattr__", "__dict__", "__class__"})


@cache
def definitions(kind: Any, method: str) -> tuple[Any, ...]:
    """The functions that a method runs: its own, and those of the bases where it asks for them."""
    found = []
    for base in kind.__mro__:
        member = vars(base).get(method)
        member = member.fget if isinstance(member, property) else member
        if not inspect.isfunction(member) or base.__module__.startswith("torch."):
            continue
        found.append(member)
        if "super" not in inspect.unwrap(member).__code__.co_names:
            break
    return tuple(found)


def _own(kind: Any) -> list[Any]:
    return [b for b in kind.__mro__ if b is not object and not b.__module__.startswith("torch.")]


def options_of(traces: Traces) -> dict[tuple[int, str], set[str]]:
    """For each method that was traced, by its module's id, its parameters that were seen with some
    values only."""
    found: dict[tuple[int, str], set[str]] = {}
    for trace in traces.traces:
        for call in calls_of(trace.call):
            found.setdefault((id(call.module), call.method), set()).update(_options(call))
    return found


def opened(traces: Traces) -> dict[int, set[str]]:
    """The methods that were traced and that users may call otherwise, by their module's id."""
    found: dict[int, set[str]] = {}
    for trace in traces.traces:
        for call in calls_of(trace.call):
            if is_entry_point(call):
                found.setdefault(id(call.module), set()).add(call.method)
    return found


def _options(call: Call) -> set[str]:
    """The parameters of a recorded call that could be something else than the tensors they were."""
    kind: Any = type(call.module)
    if not definitions(kind, call.method):
        return set()
    signature = inspect.signature(getattr(kind, call.method))
    try:
        bound = signature.bind(call.module, *call.args, **call.kwargs)
    except TypeError:
        return set(signature.parameters)
    bound.apply_defaults()
    return {name for name, value in list(bound.arguments.items())[1:] if not _is_data(value)}


def _is_data(value: Any) -> bool:
    if isinstance(value, tuple | list | dict):
        parts = value.values() if isinstance(value, dict) else value
        return bool(value) and all(map(_is_data, parts))
    return isinstance(value, fx.Node)
