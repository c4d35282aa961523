"""What was found of a function that was read: which layers and weights it uses, and how."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from repfuse.frontends.torch.calls import is_leaf
from repfuse.frontends.torch.objects import (
    NOTHING,
    Thing,
    Values,
    Weight,
    found_in,
)

__all__ = ["Frame", "Notes", "Scope"]


@dataclass(eq=False)
class Frame:
    """What a function uses, called with certain things.

    module, method, function: of which module it is a method; a function inside, or one that the
    method calls, has those of the method. outside: it is one that the method calls. runs: modules
    that are called, and the expression that is called, None where that happens elsewhere. weights:
    tensors that are used. looks: layers, and what is looked up of them. inner: what it calls.
    """

    module: nn.Module | None
    method: str
    function: Any
    outside: bool = False
    runs: dict[int, tuple[nn.Module, ast.AST | None]] = field(default_factory=dict)
    weights: dict[int, Weight] = field(default_factory=dict)
    looks: set[tuple[Thing, str]] = field(default_factory=set)
    inner: dict[int, Frame] = field(default_factory=dict)

    def all(self, enters: Callable[[Frame], bool] = lambda frame: True) -> list[Frame]:
        """This one and those inside, but for those that are not to be entered."""
        found, todo = {id(self): self}, [self]
        while todo:
            for frame in todo.pop().inner.values():
                if id(frame) not in found and enters(frame):
                    found[id(frame)] = frame
                    todo.append(frame)
        return list(found.values())


@dataclass(eq=False)
class Scope:
    """The local names of a function. guards: what was asked for its class, around and before where
    the reading is. shared: the names that are nonlocal."""

    frame: Frame
    outer: Scope | None = None
    names: dict[str, Values] = field(default_factory=dict)
    result: set[Any] = field(default_factory=set)
    guards: list[set[str]] = field(default_factory=lambda: [set()])
    shared: set[str] = field(default_factory=set)

    def home(self, name: str) -> Scope:
        """The scope in which a name lies."""
        scope: Scope | None = self
        while scope is not None and name not in scope.names:
            scope = scope.outer
        return scope or self

    def join(self, names: dict[str, Values]) -> None:
        """What names may stand for after one way or another."""
        for name, values in names.items():
            self.names[name] = self.names.get(name, NOTHING) | values


class Notes:
    """answers: whether the methods are given data and give something. Others are only asked what
    they look up that might not be there any more. kept: what attributes were set to."""

    def __init__(self, answers: bool) -> None:
        self.answers = answers
        self.kept: dict[tuple[Any, str], set[Any]] = {}

    def run(self, scope: Scope, module: nn.Module, how: ast.AST | None) -> None:
        key = id(module)
        if key not in scope.frame.runs or how is None:
            scope.frame.runs[key] = (module, how)

    def consume(self, scope: Scope, values: Values) -> None:
        """Weights among the values are computed with."""
        if self.answers:
            for each in found_in(values):
                if isinstance(each, Weight):
                    scope.frame.weights[each.key] = each

    def keep(self, owner: Any, name: str, values: Values) -> None:
        """An attribute is set."""
        self.kept.setdefault((owner, name), set()).update(values)

    def look(self, scope: Scope, module: nn.Module, name: str, node: ast.AST | None) -> None:
        if is_leaf(module) and not (not self.answers and self._guarded(scope, node)):
            scope.frame.looks.add((Thing(id(module), module), name))

    def _guarded(self, scope: Scope, node: ast.AST | None) -> bool:
        inner: ast.AST | None = node
        tests = set().union(*scope.guards)
        while inner is not None and tests:
            if ast.dump(inner) in tests:
                return True
            inner = inner.value if isinstance(inner, ast.Attribute | ast.Subscript) else None
        return False
