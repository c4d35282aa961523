"""What a call does with the objects of a model that it is given, by what is called."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import nn

from repfuse.frontends.torch.calls import is_leaf
from repfuse.frontends.torch.objects import (
    NOTHING,
    Bound,
    Box,
    Closure,
    Made,
    Text,
    Thing,
    Usual,
    Values,
    Weight,
    boxed,
    elements,
    found_in,
    is_torch,
    origin,
    things,
)

if TYPE_CHECKING:
    from repfuse.frontends.torch.frames import Scope
    from repfuse.frontends.torch.lookups import Lookups

__all__ = ["apply"]

QUESTIONS = {
    "len", "isinstance", "issubclass", "hasattr", "type", "bool", "id", "callable", "print", "str",
    "repr", "hash", "format", "dir", "warn", "range",
}  # fmt: skip
KEEPS = {
    "list", "tuple", "dict", "set", "frozenset", "iter", "zip", "enumerate", "reversed", "sorted",
    "filter", "chain", "from_iterable", "OrderedDict", "deque", "islice", "cycle", "product",
    "copy", "deepcopy", "partial", "next", "cast", "max", "min", "defaultdict", "pairwise",
}  # fmt: skip
CALLS = {"map", "reduce", "filter", "starmap", "accumulate"}
OF_ALL = {"modules", "named_modules"}
OF_SOME = {"children", "named_children"}
TABLES = {"parameters", "named_parameters", "buffers", "named_buffers", "state_dict"}
GETTERS = {"get_submodule", "get_parameter", "get_buffer"}
CALLED = {"__call__", "forward", "_call_impl", "_wrapped_call_impl"}
HOOKED = "register_forward", "register_full", "register_backward", "register_module"


def apply(
    reading: Lookups, scope: Scope, called: Any, node: ast.Call | None, args: list[Values],
    named: dict[str, Values], rest: Values | None,
) -> Values:  # fmt: skip
    """What a call gives; rest: what further arguments may be, None if there are none."""
    given = [*args, *named.values(), rest or NOTHING]
    if isinstance(called, Closure):
        return reading.call(scope, called, args, named, rest)
    if isinstance(called, Bound):
        if is_torch(called.function) and isinstance(called.owner, Thing):
            return _torch(reading, scope, called.name, given)
        return reading.call(scope, called, args, named, rest)
    if isinstance(called, Usual):
        return _usual(reading, scope, called, node, args, given)
    if isinstance(called, Box):  # whichever of them it is
        inside = [apply(reading, scope, e, node, args, named, rest) for e in called.inside]
        return NOTHING.union(*inside)
    if isinstance(called, Made):
        found = NOTHING
        for name in ("__call__", "forward"):
            for own in reading.member(scope, called, name, None):
                if isinstance(own, Bound):
                    found |= apply(reading, scope, own, node, args, named, rest)
        return found
    if not isinstance(called, Thing):
        return NOTHING
    it = called.it
    if isinstance(it, nn.Module):
        _run(reading, scope, it, node.func if node is not None else None, given)
        return NOTHING
    if isinstance(it, type):
        return _make(reading, scope, it, args, named, rest)
    if it is getattr:
        return _getattr(reading, scope, args, node)
    if it is setattr and len(args) > 2:
        for owner, text in product(args[0], args[1]):
            reading.keep(owner, text.it if isinstance(text, Text) else "*", args[2])
        return NOTHING
    if it is vars and args:
        return NOTHING.union(*(reading.member(scope, e, "__dict__", node) for e in args[0]))
    name = getattr(it, "__name__", "")
    if it is type and args:
        return NOTHING
    if is_torch(it):
        return _torch(reading, scope, name, given)
    if origin(it) in sys.stdlib_module_names:
        return _python(reading, scope, name, args, given, node)
    inner = [each for values in given for each in found_in(values)]
    if inspect.isfunction(it) and any(not isinstance(each, Text | Weight) for each in inner):
        return reading.call(scope, called, args, named, rest)
    for values in given[name.endswith("_") :]:
        reading.escape(scope, values)
    return NOTHING


def _run(
    reading: Lookups, scope: Scope, module: nn.Module, how: ast.AST | None, given: list[Values]
) -> None:
    """A module is called."""
    if reading.answers:
        reading.run(scope, module, how)
    for values in given:
        reading.escape(scope, values)


def _usual(
    reading: Lookups, scope: Scope, called: Usual, node: ast.Call | None, args: list[Values],
    given: list[Values],
) -> Values:  # fmt: skip
    """A method that torch gives every module, or one of a list."""
    name, owner = called.name, called.owner
    if isinstance(owner, Box):
        if name in ("items", "popitem"):
            return boxed(boxed(owner.inside))
        if name in ("values", "keys", "copy", "union", "__iter__"):
            return frozenset({owner})
        return NOTHING if name in ("append", "extend", "join", "format") else owner.inside
    module = getattr(owner, "it", None)
    if not isinstance(module, nn.Module):
        if isinstance(owner, Made) and name in CALLED:
            return apply(reading, scope, owner, node, args, {}, NOTHING)
        return NOTHING
    if name in OF_ALL | OF_SOME | TABLES or name in ("values", "items", "__iter__"):
        listed: Any = module.modules() if name in OF_ALL else module.children()
        listed = [*module.parameters(), *module.buffers()] if name in TABLES else listed
        parts = NOTHING.union(*map(things, listed))
        pairs = name == "items" or name.startswith("named_")
        return boxed(boxed(parts)) if pairs else boxed(parts)
    if name in GETTERS and args:
        return _at(reading, scope, frozenset({owner}), args[0], node)
    if name in CALLED:
        _run(reading, scope, module, node.func if node is not None else None, given)
        return NOTHING
    if name == "apply":
        parts = NOTHING.union(*map(things, module.modules()))
        for each in [each for values in given for each in values]:
            apply(reading, scope, each, None, [parts], {}, None)
    elif name.startswith(HOOKED):
        if reading.answers:
            reading.run(scope, module, None)
        for each in [each for values in given for each in values]:
            apply(reading, scope, each, None, [], {}, NOTHING)
    elif name in ("get", "pop", "__getitem__", "popitem"):
        return NOTHING.union(*map(things, module.children()))
    return frozenset({owner}) if name in ("train", "eval", "to", "requires_grad_") else NOTHING


def _make(
    reading: Lookups, scope: Scope, kind: type, args: list[Values], named: dict[str, Values],
    rest: Values | None,
) -> Values:  # fmt: skip
    """An object is made of a class."""
    given = [*args, *named.values(), rest or NOTHING]
    if kind is type and args:
        kinds = [reading.class_of(scope, each, None) for each in args[0] if _is_module(each)]
        return NOTHING.union(*kinds)
    name = kind.__name__
    if is_torch(kind):
        inside = NOTHING.union(*given)
        reading.consume(scope, inside)
        parts = frozenset(each for each in found_in(inside) if not isinstance(each, Weight))
        return boxed(parts)
    if origin(kind) in sys.stdlib_module_names:
        return _python(reading, scope, name, args, given, None)
    made = Made(kind)
    begun = [own for own in reading.member(scope, made, "__init__", None) if isinstance(own, Bound)]
    for own in begun:
        apply(reading, scope, own, None, args, named, rest)
    return frozenset({made}) if begun else boxed(NOTHING.union(*given))


def _is_module(value: Any) -> bool:
    return isinstance(value, Thing) and isinstance(value.it, nn.Module)


def _torch(reading: Lookups, scope: Scope, name: str, given: list[Values]) -> Values:
    """A function of torch computes, or calls what it is given."""
    in_place = name.endswith("_") and not name.endswith("__")
    for values in given[in_place:]:
        reading.consume(scope, values)
        for each in found_in(values):
            if _is_module(each):
                parts = [each.it, *(part.it for part in elements(frozenset({each})))]
                for part in parts if reading.answers else ():
                    reading.run(scope, part, PASSED)
            elif isinstance(each, Closure | Bound | Made):
                apply(reading, scope, each, None, [], {}, NOTHING.union(*given) - {each})
    return NOTHING


PASSED = ast.Name("checkpoint")


def _python(
    reading: Lookups, scope: Scope, name: str, args: list[Values], given: list[Values],
    node: ast.Call | None,
) -> Values:  # fmt: skip
    """A function of Python's own."""
    if name in QUESTIONS:
        _question(reading, scope, name, args, node)
        return NOTHING
    inside = NOTHING.union(*given)
    parts = elements(inside)
    found: Values = NOTHING
    for each in found_in(inside):
        if isinstance(each, Closure | Bound | Made) or (
            name in CALLS | {"partial"} and isinstance(each, Thing) and each in inside
            and (not _is_module(each) or each in (args[0] if args else ()))
        ):  # fmt: skip
            rest = (inside if name == "partial" else parts | inside) - {each}
            found |= apply(reading, scope, each, None, [], {}, rest)
    if name == "partial":
        return found | (args[0] if args else NOTHING)
    if name == "next":
        return elements(inside) | frozenset(e for e in inside if isinstance(e, Weight))
    if name in ("copy", "deepcopy", "cast", "max", "min"):
        return inside | (parts if name in ("max", "min") else NOTHING)
    if name in KEEPS or name in CALLS:
        parts |= frozenset(each for each in inside if isinstance(each, Text))
        if name in ("enumerate", "zip", "pairwise"):
            return boxed(boxed(parts))
        deeper = name in ("dict", "OrderedDict", "chain", "product", "from_iterable")
        return boxed(parts | (elements(parts) if deeper else NOTHING) | found)
    reading.consume(scope, inside)
    return found


def _question(
    reading: Lookups, scope: Scope, name: str, args: list[Values], node: ast.Call | None
) -> None:
    if not reading.answers or not args:
        return
    for each in args[0]:
        if not _is_module(each):
            continue
        if name in ("isinstance", "issubclass"):
            reading.look(scope, each.it, "__class__", None)
        elif name == "hasattr" and len(args) > 1:
            for text in args[1]:
                known = isinstance(text, Text) and is_leaf(each.it) and hasattr(each.it, text.it)
                if known and not hasattr(nn.Module, text.it):
                    reading.look(scope, each.it, text.it, None)


def _getattr(reading: Lookups, scope: Scope, args: list[Values], node: ast.Call | None) -> Values:
    if len(args) < 2:
        return NOTHING
    if len(args) > 2 and not reading.answers:
        return NOTHING
    found = args[2] if len(args) > 2 else NOTHING
    return found | _at(reading, scope, args[0], args[1], node)


def _at(
    reading: Lookups, scope: Scope, owners: Values, names: Values, node: ast.Call | None
) -> Values:
    """getattr(self, name), where the name may be known in part, or be a path."""
    texts = {each.it for each in names if isinstance(each, Text)} or {"*"}
    found: set[Any] = set()
    for owner in owners:
        for text in texts:
            here = frozenset({owner})
            for part in text.split("."):
                known = [(each, name) for each in here for name in _names(each, part)]
                here = NOTHING.union(*(reading.member(scope, e, n, node) for e, n in known))
            found |= here
    return frozenset(found)


def _names(owner: Any, text: str) -> Iterator[str]:
    if "*" not in text:
        yield text
    elif _is_module(owner):
        pattern = re.compile(".*".join(map(re.escape, text.split("*"))))
        names = (*owner.it._modules, *owner.it._parameters, *owner.it._buffers)
        names = (*names, *(name for kind in _own(owner.it) for name in vars(kind)))
        yield from (n for n in names if pattern.fullmatch(n) and not n.startswith("__"))


def _own(module: nn.Module) -> list[type]:
    return [kind for kind in type(module).__mro__ if not is_torch(kind) and kind is not object]
