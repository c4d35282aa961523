"""What code that was not traced does with the modules of its class, read from its bytecode.

A module that cannot be traced still calls its children, and mostly that is all it does with
them. Where its code reaches further in (`self.net.conv(x)`, `self.layers[:2]`, `self.net.scale`),
what it reaches must stay what it was.
"""

from __future__ import annotations

import dis
import inspect
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from types import CodeType
from typing import Any

import torch
from torch import nn

from repfuse.frontends.torch.closure import Closure, globals_of, nested, texts_of

__all__ = [
    "asks_super_of_type",
    "asks_types",
    "called_children",
    "looks_up",
    "public_methods",
    "reached",
]

LISTING = {
    "modules", "named_modules", "parameters", "named_parameters", "buffers", "named_buffers",
    "state_dict", "_modules", "_parameters", "_buffers", "__dict__",
}  # fmt: skip
CHILDREN = {"children", "named_children"}
ELEMENTS = {"values", "items"}
ASKED = {"dtype", "device"}  # of any parameter: a merged one has the same
LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass
class Uses:
    """called: chains of names from self that are called (self.net.conv -> net, conv). read:
    chains that are used as a value. inner: names that are looked up on anything else. loops:
    whether a local variable is iterated over. bare: whether self itself is used as a value; lists:
    whether all of its parts are listed."""

    called: set[tuple[str, ...]] = field(default_factory=set)
    read: set[tuple[str, ...]] = field(default_factory=set)
    inner: set[str] = field(default_factory=set)
    loops: bool = False
    bare: bool = False
    lists: bool = False

    def add(self, other: Uses) -> None:
        self.called |= other.called
        self.read |= other.read
        self.inner |= other.inner
        self.loops |= other.loops
        self.bare |= other.bare
        self.lists |= other.lists


@cache
def asks_types(code: CodeType) -> bool:
    """Whether the code asks for the class of anything, where isinstance would tell the tracer."""
    return "type" in globals_of(code) or "__class__" in code.co_names


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
            for part in () if code is None else (code, *nested(code)):
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
    """What the code of a module that cannot be traced may use inside its children.

    What is only called is used as a whole. Into what is used otherwise, or is given to somebody,
    all names may lead that the code looks up.
    """
    closure, uses, found = Closure.of(module), Uses(), Reached()
    for function in closure.own:
        uses.add(_uses(function.__code__))
    for chain in uses.called | uses.read:
        _follow(module, chain, chain not in uses.read, found)
    given = [module] if uses.bare else _ends(module, uses.read) + closure.held
    foreign = [_given(function.__code__) for function in closure.foreign] if given else []
    given = _passed_on(given, foreign)
    for one in given:
        for other in foreign:
            for chain in other.called | other.read:
                _follow(one, chain, chain not in other.read, found, int(one is not module))
    # Of two expressions between which the code chooses, a chain tells the last one.
    every = [uses, *foreign]
    names = {name for one in every for c in one.called | one.read for name in c[1:]}
    names = names.union(*(one.inner for one in every))
    names.update(name for function in closure.own for name in texts_of(function.__code__))
    listed = [chain for one in foreign for chain in one.called | one.read if len(chain) == 1]
    names.update(chain[0] for chain in listed if chain[0] in CHILDREN | LISTING)
    deep = sum(not CHILDREN.isdisjoint(one.inner) for one in every) > 1
    if closure.open or uses.lists or (given and (deep or not LISTING.isdisjoint(names))):
        whole = [module] if closure.open or uses.lists else given
        parts = [part for one in whole for part in one.modules() if part is not module]
        found.modules += parts
        found.tensors += [t for one in whole for t in (*one.parameters(), *one.buffers())]
        found.methods += [(part, name) for part in parts for name in public_methods(_kind(part))]
        return found
    loops = any(one.loops for one in every)
    for part in [part for one in given for part in one.modules()]:
        _named(part, names, loops, found)
    if not CHILDREN.isdisjoint(names):
        found.modules += [child for one in given for child in one.children()]
    found.modules += [one for one in given if one is not module and not one._modules]
    return found


@cache
def _given(code: CodeType) -> Uses:
    """What a function does with whatever it is given, which it may iterate over."""
    found = Uses()
    found.add(_uses(code, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] or None))
    steps = [step.opname for part in (code, *nested(code)) for step in dis.get_instructions(part)]
    found.loops |= not {"GET_ITER", "CALL_FUNCTION_EX", "UNPACK_EX"}.isdisjoint(steps)
    found.loops |= not {"next", "iter", "reduce"}.isdisjoint(code.co_names)
    found.inner |= texts_of(code)
    return found


def _passed_on(given: list[nn.Module], foreign: list[Uses]) -> list[nn.Module]:
    """What functions get, with what they find in that and may give to one another."""
    every = list(given)
    for one in every:
        for other in foreign:
            every += [end for end in _ends(one, other.read) if all(end is not e for e in every)]
    return every


def _named(part: nn.Module, names: set[str], loops: bool, found: Reached) -> None:
    """What names may lead to from a part of the model, and loops over it."""
    children = [child for name, child in part._modules.items() if child and name in names]
    found.modules += children
    for one in (part, *children) if loops else children:
        if isinstance(one, nn.Sequential):
            found.modules += list(one)
    for table in (part._parameters, part._buffers):
        found.tensors += [
            tensor
            for name, tensor in table.items()
            if tensor is not None and name in names and not hasattr(torch.Tensor, name)
        ]
    found.methods += [(part, name) for name in public_methods(_kind(part)) & names]


def _kind(module: nn.Module) -> Any:
    return type(module)


def _ends(module: nn.Module, chains: set[tuple[str, ...]]) -> list[nn.Module]:
    """The modules that chains of names lead to."""
    found = []
    for chain in chains:
        owner: nn.Module | None = module
        for name in chain:
            owner = owner._modules.get(name) if owner is not None else None
        if owner is not None:
            found.append(owner)
    return found


def _follow(
    module: nn.Module, chain: tuple[str, ...], only_called: bool, found: Reached, start: int = 0
) -> None:
    """Where a chain of names leads to. start: how deep the module is in the one that is read."""
    modules = found.modules
    owner = module
    for depth, name in enumerate(chain, start):
        child = owner._modules.get(name)
        if child is None:
            tensor = {**owner._parameters, **owner._buffers}.get(name)
            if tensor is not None and depth:
                found.tensors.append(tensor)
            elif name in CHILDREN | ELEMENTS | LISTING and not isinstance(owner, LISTS):
                modules += [part for part in owner.children() if owner is not module]
            elif depth and name != "forward" and _code(getattr(type(owner), name, None)):
                found.methods.append((owner, name))
            return
        if depth and not isinstance(owner, LISTS):
            modules.append(child)
        owner = child
    if not only_called and isinstance(owner, nn.Sequential):
        modules += list(owner)


def _code(member: Any) -> CodeType | None:
    if isinstance(member, property):
        member = member.fget
    member = inspect.unwrap(member) if callable(member) else getattr(member, "__func__", None)
    code = getattr(member, "__code__", None)
    return code if isinstance(code, CodeType) else None


@cache
def _uses(code: CodeType, roots: tuple[str, ...] | None = None) -> Uses:
    """roots: the variables from which chains of names begin; the first argument."""
    found = Uses()
    names = roots or code.co_varnames[: min(code.co_argcount, 1)] or ("self",)
    chain: list[str] | None = None
    steps = [s for s in dis.get_instructions(code) if s.opname not in QUIET]
    for index, step in enumerate(steps):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain is not None:
            chain.append(step.argval)
            if step.opname == "LOAD_METHOD" or "NULL|self" in step.argrepr:
                found.called.add(tuple(chain))
                if len(chain) == 1 and chain[0] in CHILDREN | LISTING:
                    after = steps[index + 1 : index + 4]
                    found.lists |= not any(s.argval in ASKED for s in after)
                chain = None
            continue
        if chain == [] and step.opname.startswith("COPY"):
            continue
        if chain is not None and not _is_test(step, steps[index + 1 : index + 2], len(chain)):
            if chain:
                found.read.add(tuple(chain))
                found.lists |= len(chain) == 1 and chain[0] in CHILDREN | LISTING
            else:
                found.bare |= step.opname not in ("STORE_ATTR", "DELETE_ATTR", "SWAP")
        chain = None
        loaded = _loaded(step)
        found.bare |= not set(names).isdisjoint(loaded[:-1])
        if loaded and loaded[-1] in names:
            chain = []
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found.inner.add(step.argval)
        elif step.opname == "GET_ITER":
            found.loops |= bool(_loaded(steps[index - 1]))
        elif step.opname == "BINARY_SUBSCR":
            found.loops |= _is_looked_into(steps, index)
    for part in code.co_consts:
        if isinstance(part, CodeType):
            found.add(_uses(part, names))
    return found


QUIET = {"CACHE", "PRECALL", "CALL", "RESUME", "EXTENDED_ARG", "NOP"}


def _loaded(step: Any) -> tuple[str, ...]:
    """The local variables that a step loads, the last one on top."""
    if step.opname == "LOAD_DEREF":
        return (step.argval,)
    if not step.opname.startswith("LOAD_FAST"):
        return ()
    return step.argval if isinstance(step.argval, tuple) else (step.argval,)


def _is_looked_into(steps: list[Any], index: int) -> bool:
    """Whether a part of a part is taken, or one that is called."""
    before = steps[max(index - 3, 0) : index]
    names = [step.opname for step in before]
    return "BINARY_SUBSCR" in names or "PUSH_NULL" in names


def _is_test(step: Any, after: list[Any], length: int) -> bool:
    """if self.norm: and if self.norm is not None: use nothing of a child."""
    if length != 1:
        return False
    if step.opname == "LOAD_CONST" and step.argval is None:
        return bool(after) and after[0].opname == "IS_OP"
    return bool(step.opname.startswith("POP_JUMP") or step.opname == "TO_BOOL")
