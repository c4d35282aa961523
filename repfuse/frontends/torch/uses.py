"""What code that was not traced does with the modules of its class, read from its bytecode.

A module that cannot be traced still calls its children, and mostly that is all it does with
them. Where its code reaches further in (`self.net.conv(x)`, `self.layers[:2]`, `self.net.scale`),
what it reaches must stay what it was.
"""

from __future__ import annotations

import dis
import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from types import CodeType
from typing import Any

import torch
from torch import nn

__all__ = [
    "asks_super_of_type",
    "asks_types",
    "called_children",
    "looks_up",
    "public_methods",
    "reached",
]

LISTING = {
    "children",
    "modules",
    "named_children",
    "named_modules",
    "parameters",
    "values",
    "items",
}
LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass
class Uses:
    """called: chains of names from self that are called (self.net.conv -> net, conv). read:
    chains that are used as a value. inner: names that are looked up on anything else. loops:
    whether a local variable is iterated over."""

    called: set[tuple[str, ...]] = field(default_factory=set)
    read: set[tuple[str, ...]] = field(default_factory=set)
    inner: set[str] = field(default_factory=set)
    loops: bool = False

    def add(self, other: Uses) -> None:
        self.called |= other.called
        self.read |= other.read
        self.inner |= other.inner
        self.loops |= other.loops


@cache
def asks_types(code: CodeType) -> bool:
    """Whether the code asks for the class of anything, where isinstance would tell the tracer."""
    return "type" in _globals_of(code) or "__class__" in code.co_names


@cache
def asks_super_of_type(kind: Any) -> bool:
    """Whether a method of a class asks for super(type(self), self)."""
    for base in kind.__mro__:
        if base is object or base.__module__.startswith("torch."):
            continue
        for code in filter(None, map(_code, vars(base).values())):
            if not {"super", "type"} <= set(code.co_names):
                continue
            loads = [s.argval for s in dis.get_instructions(code) if s.opname == "LOAD_GLOBAL"]
            if ("super", "type") in pairwise(loads):
                return True
    return False


@cache
def looks_up(kind: Any, name: str) -> bool:
    """Whether a method of a class reads an attribute, and does not only write it.

    Reading it to count on (self.calls += 1) is to write it.
    """
    for base in kind.__mro__:
        if base is object or base.__module__.startswith("torch."):
            continue
        for member in vars(base).values():
            code = _code(member)
            for part in () if code is None else (code, *_nested(code)):
                if name in part.co_consts or _loads(part)[name] > 0:
                    return True
    return False


@cache
def _loads(code: CodeType) -> Counter[str]:
    """How often code looks up each attribute, but to change what it finds in a statement."""
    steps, found = list(dis.get_instructions(code)), Counter[str]()
    for index, step in enumerate(steps):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            before = steps[index - 1]
            kept = before.opname in ("COPY", "DUP_TOP")
            other = before.opname == "LOAD_FAST" and before.argval != code.co_varnames[0]
            found[step.argval] += not (kept or other)
    return found


@cache
def _globals_of(code: CodeType) -> frozenset[str]:
    """The global names that a function and those inside it load."""
    steps = (step for part in (code, *_nested(code)) for step in dis.get_instructions(part))
    return frozenset(step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))


@cache
def public_methods(kind: Any) -> frozenset[str]:
    """The methods of a class of one's own that users may call, forward not among them."""
    return frozenset(
        name
        for base in kind.__mro__
        if not base.__module__.startswith("torch.") and base is not object
        for name, member in vars(base).items()
        if inspect.isfunction(member) and not name.startswith("_") and name != "forward"
    )


@cache
def called_children(kind: Any, method: str) -> set[str]:
    """The children that a method calls by name: self.conv(x)."""
    code = _code(getattr(kind, method, None))
    return set() if code is None else {chain[0] for chain in _uses(code).called if len(chain) == 1}


@dataclass
class Reached:
    """What a module's own code uses of the inside of its children.

    methods: (module, name) of methods other than forward.
    """

    modules: list[nn.Module] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)
    methods: list[tuple[nn.Module, str]] = field(default_factory=list)


def reached(module: nn.Module) -> Reached:
    """What the code of a module that cannot be traced may use inside its children."""
    own: Any = type(module)
    uses, found = _uses_of_forward(own), Reached()
    for chain in uses.called | uses.read:
        _follow(module, chain, chain not in uses.read, found)
    modules, tensors = found.modules, found.tensors
    for element in _elements(module):
        modules += [part for name, part in element._modules.items() if part and name in uses.inner]
        for table in (element._parameters, element._buffers):
            tensors += [
                tensor
                for name, tensor in table.items()
                if tensor is not None and name in uses.inner and not hasattr(torch.Tensor, name)
            ]
        if uses.loops and isinstance(element, nn.Sequential):
            modules += list(element)
        kind: Any = type(element)
        methods = public_methods(kind) & uses.inner
        found.methods += [(element, name) for name in methods]
    return found


def _follow(module: nn.Module, chain: tuple[str, ...], only_called: bool, found: Reached) -> None:
    """Where a chain of names leads to."""
    modules = found.modules
    owner = module
    for depth, name in enumerate(chain):
        child = owner._modules.get(name)
        if child is None:
            tensor = {**owner._parameters, **owner._buffers}.get(name)
            if tensor is not None and depth:
                found.tensors.append(tensor)
            elif name in LISTING and not isinstance(owner, LISTS):
                modules += [part for part in owner.children() if owner is not module]
            elif depth and name != "forward" and _code(getattr(type(owner), name, None)):
                found.methods.append((owner, name))
            return
        if depth and not isinstance(owner, LISTS):
            modules.append(child)
        owner = child
    if not only_called and isinstance(owner, nn.Sequential):
        modules += list(owner)


def _elements(module: nn.Module) -> Iterator[nn.Module]:
    """What lies in the lists of a module, which loops over them get one by one."""
    for child in module.children():
        if isinstance(child, (*LISTS, nn.Sequential)):
            yield from child.children()
            yield from _elements(child)


@cache
def _uses_of_forward(kind: Any) -> Uses:
    """What forward uses, and the methods and properties of the class that it names."""
    total, todo, seen = Uses(), ["forward"], set[str]()
    while todo:
        name = todo.pop()
        for base in kind.__mro__:
            code = _code(vars(base).get(name))
            if code is None or base.__module__.startswith("torch.nn"):
                continue
            total.add(_uses(code))
            names = [*code.co_names, *(n for part in _nested(code) for n in part.co_names)]
            todo += [other for other in names if other not in seen and hasattr(kind, other)]
            seen.update(names)
    return total


def _code(member: Any) -> CodeType | None:
    if isinstance(member, property):
        member = member.fget
    member = inspect.unwrap(member) if callable(member) else getattr(member, "__func__", None)
    code = getattr(member, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _nested(code: CodeType) -> Iterator[CodeType]:
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield part
            yield from _nested(part)


@cache
def _uses(code: CodeType, self_name: str | None = None) -> Uses:
    found = Uses()
    name = self_name or (code.co_varnames[0] if code.co_argcount else "self")
    chain: list[str] | None = None
    steps = list(dis.get_instructions(code))
    for index, step in enumerate(steps):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain is not None:
            chain.append(step.argval)
            if step.opname == "LOAD_METHOD" or "NULL|self" in step.argrepr:
                found.called.add(tuple(chain))
                chain = None
            continue
        if chain and not _is_test(step, steps[index + 1 : index + 2]):
            found.read.add(tuple(chain))
        chain = None
        if step.opname in ("LOAD_FAST", "LOAD_DEREF") and step.argval == name:
            chain = []
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found.inner.add(step.argval)
        elif step.opname == "GET_ITER" and steps[index - 1].opname.startswith("LOAD_FAST"):
            found.loops = True
    for part in code.co_consts:
        if isinstance(part, CodeType):
            found.add(_uses(part, name))
    return found


def _is_test(step: Any, after: list[Any]) -> bool:
    """if self.norm: and if self.norm is not None: use nothing of it."""
    if step.opname == "LOAD_CONST" and step.argval is None:
        return bool(after) and after[0].opname == "IS_OP"
    return "JUMP" in step.opname or step.opname == "TO_BOOL"
