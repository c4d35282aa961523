"""The code that a module's forward may run, as far as names lead to it, where no trace tells.

The methods of its class and what properties and decorators hold of them (`own`); functions that
these name, of their file or of others, and of objects in the module's attributes (`foreign`),
which may be given the module, or a child of it, and look into that.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from repfuse.frontends.torch.snapshot import BASE, may_hold, parts_of

__all__ = ["Closure", "globals_of", "nested", "texts_of"]

KNOWN = {*sys.stdlib_module_names, "builtins", "torch", "numpy"}  # they look into no model
WRAPPERS = (functools.partial, functools.partialmethod, functools.cached_property)
BY_NAME = {"getattr", "attrgetter", "methodcaller", "get_submodule", "get_parameter", "get_buffer"}
MOST = 300  # functions that are read
DEPTH = 5


@dataclass
class Closure:
    """own: functions that get the module as their first argument. held: the modules in what the
    code may find in plain attributes. open: whether it may run what was not found."""

    module: nn.Module
    own: list[FunctionType] = field(default_factory=list)
    foreign: list[FunctionType] = field(default_factory=list)
    held: list[nn.Module] = field(default_factory=list)
    open: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> Closure:
        found = cls(module)
        found._follow_names()
        found._follow_globals()
        found.open |= len(found.foreign) > MOST
        return found

    def _follow_names(self) -> None:
        """The methods and attributes whose names occur in the methods that are found so far."""
        bases = [base for base in type(self.module).__mro__ if not _is_known(base)]
        self.open = any("__getattr__" in vars(b) or "__getattribute__" in vars(b) for b in bases)
        todo, seen = ["forward", "__call__"], set[str]()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            for base in bases:
                if name in vars(base):
                    self._add(vars(base)[name])
            if name not in BASE and name in vars(self.module):
                self._hold(vars(self.module)[name])
            names = {n for f in (*self.own, *self.foreign) for n in names_of(f.__code__)}
            if not BY_NAME.isdisjoint(names):
                names.update(name for base in bases for name in vars(base))
                names.update(vars(self.module))
            todo += names - seen

    def _add(self, member: Any) -> None:
        """A member of the class. A wrapper that takes anything is given the module as well."""
        loose = isinstance(member, staticmethod | classmethod)
        for function in functions_in(member):
            own = not loose and function.__code__.co_argcount > 0
            into = self.own if own else self.foreign
            if function not in into:
                into.append(function)
            if not loose and not own:
                self._note(self.module)

    def _hold(self, value: Any) -> None:
        """What lies in an attribute: functions, objects with methods, modules."""
        todo, seen = [(value, DEPTH)], set[int]()
        while todo:
            one, depth = todo.pop()
            if id(one) in seen or not depth or isinstance(one, torch.Tensor):
                continue
            seen.add(id(one))
            if isinstance(one, nn.Module):
                self._note(one)
                continue
            if isinstance(one, MethodType):
                todo.append((one.__self__, depth - 1))
            if isinstance(one, functools.partial):
                todo += [(part, depth - 1) for part in (*one.args, *one.keywords.values())]
            self._run(one)
            parts = enumerate(one) if isinstance(one, tuple) else parts_of(one)
            todo += [(part, depth - 1) for _, part in parts if may_hold(part) or callable(part)]

    def _note(self, module: nn.Module) -> None:
        if all(module is not one for one in self.held):
            self.held.append(module)

    def _run(self, thing: Any) -> None:
        """The functions of a callable, or of a class or an object that is none of torch's."""
        kind = thing if isinstance(thing, type) else type(thing)
        found = [f for f in functions_in(thing) if not _is_known(f)]
        if not found and not isinstance(thing, FunctionType | ModuleType) and not _is_known(kind):
            members = [
                m for base in kind.__mro__ if not _is_known(base) for m in vars(base).values()
            ]
            found = [f for member in members for f in functions_in(member)]
        self.foreign += [function for function in found if function not in self.foreign]

    def _follow_globals(self) -> None:
        """What the code names of its file, or of a module that its file names."""
        todo, seen = [*self.own, *self.foreign], set[int]()
        while todo and len(self.foreign) <= MOST:
            function = todo.pop()
            names, before = names_of(function.__code__), len(self.foreign)
            for name in globals_of(function.__code__):
                thing = function.__globals__.get(name)
                for one in _members(thing, names) if isinstance(thing, ModuleType) else [thing]:
                    if one is not None and id(one) not in seen:
                        seen.add(id(one))
                        self._run(one)
            todo += self.foreign[before:]


def _members(module: ModuleType, names: frozenset[str]) -> list[Any]:
    if module.__name__.partition(".")[0] in KNOWN:
        return []
    return [vars(module)[name] for name in names & vars(module).keys()]


def _is_known(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] in KNOWN


def functions_in(thing: Any) -> Iterator[FunctionType]:
    """The functions behind a member of a class: of a property, a wrapper, a closure."""
    todo, seen = [thing], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, FunctionType):
            yield one
            for cell in one.__closure__ or ():
                try:
                    todo.append(cell.cell_contents)
                except ValueError:  # not filled yet
                    continue
            todo.append(vars(one).get("__wrapped__"))
        elif isinstance(one, property):
            todo.append(one.fget)
        elif isinstance(one, staticmethod | classmethod | MethodType):
            todo.append(one.__func__)
        elif isinstance(one, WRAPPERS):
            todo.append(one.func)
        elif not isinstance(one, type | nn.Module | torch.Tensor):
            todo.append(getattr(one, "__wrapped__", None))


@cache
def names_of(code: CodeType) -> frozenset[str]:
    """All names of globals and attributes; where code looks up by name, all texts as well."""
    names = {name for part in (code, *nested(code)) for name in part.co_names}
    return frozenset(names | texts_of(code))


@cache
def texts_of(code: CodeType) -> frozenset[str]:
    """The names in the texts of code that looks up by name."""
    parts = (code, *nested(code))
    if BY_NAME.isdisjoint(name for part in parts for name in part.co_names):
        return frozenset()
    texts = [text for part in parts for text in part.co_consts if isinstance(text, str)]
    return frozenset(name for text in texts for name in text.split("."))


@cache
def globals_of(code: CodeType) -> frozenset[str]:
    """The global names that a function and those inside it load."""
    steps = (step for part in (code, *nested(code)) for step in dis.get_instructions(part))
    return frozenset(step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))


def nested(code: CodeType) -> Iterator[CodeType]:
    """The functions that a function defines."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield part
            yield from nested(part)
