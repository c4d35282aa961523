"""Read a method that was not traced: what it uses of the layers and weights of one module.

The method is run as it were with sets of objects instead of values, over all its branches, through
functions inside it, its own helper methods, properties, and Python functions that are given a part
of the model. What such a part is given to otherwise, nobody knows: it counts as used.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from repfuse.frontends.torch.called import apply
from repfuse.frontends.torch.calls import is_leaf
from repfuse.frontends.torch.objects import (
    LISTS,
    NOTHING,
    Bound,
    Box,
    Closure,
    Made,
    Super,
    Text,
    Thing,
    Usual,
    Values,
    Weight,
    boxed,
    elements,
    found_in,
    member_of,
    things,
)
from repfuse.frontends.torch.weights import METADATA, tensors_named
from repfuse.frontends.torch.written import defined, guarded_by, node_of, outer_of

__all__ = ["Frame", "Reading"]

SIZES = {"shape", "size", "numel"}
USUAL = frozenset(dir(nn.Module()))
PASSES = 3
ROUNDS, CALLS = 20, 3000  # of calls inside of calls, and of calls in all


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
    """The local names of a function. own: the class that a method stands in, for super()."""

    frame: Frame
    outer: Scope | None = None
    names: dict[str, Values] = field(default_factory=dict)
    result: set[Any] = field(default_factory=set)
    guards: list[set[str]] = field(default_factory=lambda: [set()])

    def join(self, names: dict[str, Values]) -> None:
        """What names may stand for after one way or another."""
        for name, values in names.items():
            self.names[name] = self.names.get(name, NOTHING) | values


def _called_in(loop: Any) -> ast.Call | None:
    return loop.iter if isinstance(loop.iter, ast.Call) else None


def _may_end(statement: ast.AST) -> bool:
    ends = (ast.Return, ast.Raise)
    return any(isinstance(part, ends) for part in ast.walk(statement))


class Reading:
    """answers: whether the methods are given data and give something. Others are only asked what
    they look up that might not be there any more."""

    def __init__(self, answers: bool) -> None:
        self.answers = answers
        self.kept: dict[tuple[Any, str], set[Any]] = {}
        self.frames: dict[Any, tuple[Frame, Values]] = {}
        self.depth, self.left = 0, CALLS

    def method(self, module: nn.Module, name: str) -> Frame:
        """What a method of a module uses, given anything."""
        scope, owner = Scope(Frame(module, name, None)), Thing(id(module), module)

        def read() -> None:
            values, getters = member_of(owner, type(module).__mro__, name) or (NOTHING, [])
            for getter in getters:
                self.call(scope, Bound(id(getter), owner, name, getter), [], {}, None)
            for each in values:
                if isinstance(each, Bound | Thing):
                    result = apply(self, scope, each, None, [], {}, None)
                    self._give(scope, result, module)

        self._read(scope, owner, read)
        self._read(scope, owner, read)  # what it keeps in attributes, another call may find
        return scope.frame

    def statements(self, module: nn.Module, method: str, function: Any, places: set[int]) -> Frame:
        """What some of the statements of a method use, and those behind one that may return."""
        called = Bound(id(function), Thing(id(module), module), method, function)
        node = node_of(outer_of(called))
        frame = Frame(module, method, function)
        if node is None:
            return frame
        scope = Scope(Frame(module, method, function))
        scope.names["__class__"] = frozenset({Super(called, defined(outer_of(called)))})
        self._bind_arguments(scope, node, [frozenset({called.owner})], {}, None)
        ends = [place for place in sorted(places) if _may_end(node.body[place])]
        first = ends[0] if ends else len(node.body)
        self._read(scope, called.owner, lambda: self.block(scope, node.body))
        scope.frame = frame
        some = [s for place, s in enumerate(node.body) if place in places or place > first]
        self._read(scope, called.owner, lambda: self.block(scope, some))
        return frame

    def _read(self, scope: Scope, owner: Thing, read: Callable[[], None]) -> None:
        """Code that cannot be read may do anything."""
        self.depth, self.left = 0, CALLS
        try:
            read()
        except Exception:
            self.frames.clear()  # some are not read to their end
            self.escape(scope, frozenset({owner}))

    def _give(self, scope: Scope, result: Values, module: nn.Module) -> None:
        """What users get they may use."""
        for each in found_in(result) if self.answers else ():
            if isinstance(each, Weight):
                self.consume(scope, frozenset({each}))
            elif isinstance(each, Thing) and isinstance(each.it, nn.Module):
                if each.it is not module:
                    self.run(scope, each.it, None)
            elif isinstance(each, Closure | Bound):
                apply(self, scope, each, None, [], {}, NOTHING)

    # What is noted.

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

    def escape(self, scope: Scope, values: Values) -> None:
        """The values go somewhere unknown, where anything may be done with them."""
        if not self.answers:
            return
        self.consume(scope, values)
        for each in found_in(values):
            if isinstance(each, Thing) and isinstance(each.it, nn.Module):
                for part in each.it.modules():
                    self.run(scope, part, None)
                    for tensor in (*part._parameters.values(), *part._buffers.values()):
                        if tensor is not None:
                            self.consume(scope, things(tensor))
            elif isinstance(each, Closure | Bound):
                apply(self, scope, each, None, [], {}, NOTHING)
            elif isinstance(each, Made):
                for (owner, _), kept in list(self.kept.items()):
                    if owner == each and not kept & {each}:
                        self.escape(scope, frozenset(kept))

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

    # Functions.

    def call(
        self, scope: Scope, called: Any, args: list[Values], named: dict[str, Values],
        rest: Values | None,
    ) -> Values:  # fmt: skip
        """Call a Python function; rest: what further arguments may be, None if there are none.

        Where it has no source, what it is given goes somewhere unknown.
        """
        given = list(args)
        if isinstance(called, Bound):
            given.insert(0, frozenset({called.owner}))
        function = called.node if isinstance(called, Closure) else outer_of(called)
        node = function if isinstance(called, Closure) else node_of(function)
        around = called.scope.frame if isinstance(called, Closure) else scope.frame
        key = (
            id(function), called, tuple(given), tuple(sorted(named.items(), key=str)), rest,
            id(scope.frame.module), id(scope.frame.function), around.outside, self._free(called),
        )  # fmt: skip
        frame, result = self.frames.get(key, (None, NOTHING))
        if frame is None:
            self.left -= 1
            if node is None or self.depth > ROUNDS or self.left < 0:
                for values in [*args, *named.values(), rest or NOTHING]:
                    self.escape(scope, values)
                if node is None and isinstance(called, Bound):
                    return self._without_source(scope, called)
                return NOTHING
            frame = self._frame(scope, called, given, rest, function)
            self.frames[key] = frame, result
        else:
            scope.frame.inner[id(frame)] = frame
            return result
        scope.frame.inner[id(frame)] = frame
        inner = Scope(frame, called.scope if isinstance(called, Closure) else None)
        if not isinstance(called, Closure):
            inner.names["__class__"] = frozenset({Super(called, defined(function))})
        self._bind_arguments(inner, node, given, named, rest)
        begun = inner.names
        self.depth += 1
        size = -1
        for _ in range(PASSES):  # until what is kept, and what it gives to itself, is known
            known = len(inner.result) + sum(map(len, self.kept.values()))
            if size == known:
                break
            size, inner.names = known, begun.copy()
            if isinstance(node, ast.Lambda):
                inner.result |= self.value(inner, node.body)
            else:
                self.block(inner, node.body)
            self.frames[key] = frame, frozenset(inner.result)
        self.depth -= 1
        return frozenset(inner.result)

    def _free(self, called: Any) -> tuple[Values, ...]:
        """What the names of a function inside a method stand for when it is called."""
        if not isinstance(called, Closure):
            return ()
        names = sorted({part.id for part in ast.walk(called.node) if isinstance(part, ast.Name)})
        return tuple(self._Name(called.scope, ast.Name(name)) for name in names)

    def _frame(
        self, scope: Scope, called: Any, given: list[Values], rest: Values | None, function: Any
    ) -> Frame:
        home = scope.frame
        if isinstance(called, Bound) and isinstance(getattr(called.owner, "it", None), nn.Module):
            return Frame(called.owner.it, called.name, function)
        if isinstance(called, Thing):  # type(self).method(self, x)
            for each in given[0] if given else rest or NOTHING:
                module = each.it if isinstance(each, Thing) else None
                name = getattr(function, "__name__", "")
                if isinstance(module, nn.Module) and function in [
                    vars(kind).get(name) for kind in type(module).__mro__
                ]:
                    return Frame(module, name, function)
        outside = called.scope.frame.outside if isinstance(called, Closure) else True
        return Frame(home.module, home.method, home.function, outside)

    def _without_source(self, scope: Scope, called: Bound) -> Values:
        module = getattr(called.owner, "it", None)
        if isinstance(module, nn.Module):
            for tensor in tensors_named(module, called.function.__code__):
                self.consume(scope, things(tensor))
        return NOTHING

    def _bind_arguments(
        self, scope: Scope, node: Any, args: list[Values], named: dict[str, Values],
        rest: Values | None,
    ) -> None:  # fmt: skip
        names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
        for place, name in enumerate(names):
            if place < len(args):
                scope.names[name] = args[place]
            elif rest is not None:
                scope.names[name] = rest
        more = [*args[len(names) :], rest or NOTHING]
        if node.args.vararg:
            scope.names[node.args.vararg.arg] = boxed(NOTHING.union(*more))
        known = {*names, *(each.arg for each in node.args.kwonlyargs)}
        for name in known & named.keys():
            scope.names[name] = named[name]
        if node.args.kwarg:
            other = [values for name, values in named.items() if name not in known]
            scope.names[node.args.kwarg.arg] = boxed(NOTHING.union(*other))
        defaults = [*node.args.defaults, *(each for each in node.args.kw_defaults if each)]
        for default in defaults:
            self.value(scope, default)
        for name in known:
            scope.names.setdefault(name, NOTHING)

    # Statements.

    def block(self, scope: Scope, statements: list[Any]) -> None:
        for statement in statements:
            self.statement(scope, statement)

    def statement(self, scope: Scope, node: Any) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            scope.names[node.name] = frozenset({Closure((id(node), id(scope)), node, scope)})
        elif isinstance(node, ast.Return):
            scope.result |= self.value(scope, node.value)
        elif isinstance(node, ast.Assign):
            values = self.value(scope, node.value)
            for target in node.targets:
                self.bind(scope, target, values, node.value)
        elif isinstance(node, ast.AnnAssign):
            self.bind(scope, node.target, self.value(scope, node.value), node.value)
        elif isinstance(node, ast.AugAssign):
            values = self.value(scope, node.value)
            self.consume(scope, values)
            if isinstance(node.target, ast.Name):
                values |= self._Name(scope, node.target)
            self.bind(scope, node.target, values, node.value)
        elif isinstance(node, ast.For | ast.AsyncFor):
            values = self.iterated(scope, node.iter)
            for _ in range(2):
                before = scope.names.copy()
                self.bind(scope, node.target, values, _called_in(node))
                self.block(scope, node.body)
                scope.join(before)
            self.block(scope, node.orelse)
        elif isinstance(node, ast.If | ast.While):
            for _ in range(1 + isinstance(node, ast.While)):
                self.value(scope, node.test)
                self.guarded(scope, node)
        elif isinstance(node, ast.Try):
            before = scope.names.copy()
            self.block(scope, node.body)
            scope.join(before)
            for part in (*node.handlers, *node.orelse, *node.finalbody):
                before = scope.names.copy()
                self._part(scope, part)
                scope.join(before)
        elif isinstance(node, ast.Match):
            self.value(scope, node.subject)
            for case in node.cases:
                before = scope.names.copy()
                self._part(scope, case)
                scope.join(before)
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                values = self.value(scope, item.context_expr)
                if item.optional_vars is not None:
                    self.bind(scope, item.optional_vars, values, item.context_expr)
            self.block(scope, node.body)
        else:
            for part in ast.iter_child_nodes(node):
                self._part(scope, part)

    def _part(self, scope: Scope, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self.statement(scope, node)
        elif isinstance(node, ast.expr):
            self.value(scope, node)
        else:
            for part in ast.iter_child_nodes(node):
                self._part(scope, part)

    def guarded(self, scope: Scope, node: Any) -> None:
        tests = guarded_by(node.test)
        scope.guards.append(tests)
        before = scope.names.copy()
        self.block(scope, node.body)
        scope.guards.pop()
        after, scope.names = scope.names, before
        if node.body and isinstance(node.body[-1], ast.Return | ast.Continue | ast.Raise):
            scope.guards[-1] |= tests
        self.block(scope, node.orelse)
        scope.join(after)

    def bind(self, scope: Scope, target: Any, values: Values, source: Any) -> None:
        if isinstance(target, ast.Name):
            scope.names[target.id] = values
        elif isinstance(target, ast.Starred):
            self.bind(scope, target.value, boxed(values), source)
        elif isinstance(target, ast.Tuple | ast.List):
            parts = self._unpacked(scope, target, values, source)
            for part, own in zip(target.elts, parts, strict=True):
                self.bind(scope, part, own, None)
        elif isinstance(target, ast.Attribute):
            for owner in self.value(scope, target.value):
                self.keep(owner, target.attr, values)
        elif isinstance(target, ast.Subscript):
            self.value(scope, target.slice)
            self.consume(scope, values)
            if isinstance(target.value, ast.Name):
                scope.join({target.value.id: self.value(scope, target.value) | boxed(values)})
            else:
                self.bind(scope, target.value, boxed(values), None)

    def _unpacked(self, scope: Scope, target: Any, values: Values, source: Any) -> list[Values]:
        """What each name of `a, b = ...` or of `for a, b in ...` may stand for."""
        count = len(target.elts)
        if isinstance(source, ast.Tuple) and len(source.elts) == count:
            return [self.value(scope, part) for part in source.elts]
        func = source.func if isinstance(source, ast.Call) else None
        name = str(getattr(func, "attr", getattr(func, "id", "")))
        first = name in ("enumerate", "items") or name.startswith("named_")
        return [NOTHING if first and not place else elements(values) for place in range(count)]

    # Expressions.

    def value(self, scope: Scope, node: Any) -> Values:
        if node is None:
            return NOTHING
        method = getattr(self, f"_{type(node).__name__}", None)
        if method is not None:
            found: Values = method(scope, node)
            return found
        for part in ast.iter_child_nodes(node):
            self._part(scope, part)
        return NOTHING

    def iterated(self, scope: Scope, node: Any) -> Values:
        """What a loop over an expression gets."""
        values = self.value(scope, node)
        found = set(elements(values))
        for each in values:
            module = each.it if isinstance(each, Thing) else None
            if isinstance(module, nn.Module) and not isinstance(module, LISTS):
                for own in self.member(scope, each, "__iter__", node):
                    found |= elements(apply(self, scope, own, None, [], {}, None))
        return frozenset(found)

    def _Constant(self, scope: Scope, node: ast.Constant) -> Values:
        return frozenset({Text(node.value)}) if isinstance(node.value, str) else NOTHING

    def _JoinedStr(self, scope: Scope, node: ast.JoinedStr) -> Values:
        for part in node.values:
            self.value(scope, part)
        parts = [part.value if isinstance(part, ast.Constant) else "*" for part in node.values]
        return frozenset({Text("".join(map(str, parts)))})

    def _Name(self, scope: Scope, node: ast.Name) -> Values:
        inner: Scope | None = scope
        while inner is not None:
            if node.id in inner.names:
                return frozenset(inner.names[node.id])
            if "__class__" in inner.names:
                break
            inner = inner.outer
        if inner is None:
            return NOTHING
        (home,) = [each for each in inner.names["__class__"] if isinstance(each, Super)]
        function = outer_of(home.owner)
        code, cells = function.__code__, function.__closure__ or ()
        for name, cell in zip(code.co_freevars, cells, strict=False):
            if name == node.id:
                try:
                    return things(cell.cell_contents)
                except ValueError:
                    return NOTHING
        built = function.__globals__.get("__builtins__", {})
        built = built if isinstance(built, dict) else vars(built)
        return things(function.__globals__.get(node.id, built.get(node.id)))

    def _Attribute(self, scope: Scope, node: ast.Attribute) -> Values:
        found: set[Any] = set()
        for owner in self.value(scope, node.value):
            found |= self.member(scope, owner, node.attr, node)
        return frozenset(found)

    def member(self, scope: Scope, owner: Any, name: str, node: ast.AST | None) -> Values:
        """What an object has under a name."""
        found = frozenset(self.kept.get((owner, name), ()))
        if isinstance(owner, Weight):
            return self._of_weight(scope, owner, name)
        if isinstance(owner, Box):
            return frozenset({Usual(owner, name)})
        if isinstance(owner, Super):
            return self._of_class(scope, owner.owner, owner.above, name)
        if isinstance(owner, Made):
            return found | self._of_class(scope, owner, owner.kind.__mro__, name)
        if isinstance(owner, Bound | Closure | Usual) or not isinstance(owner, Thing):
            return frozenset({owner}) if name in ("__func__", "__call__", "__wrapped__") else found
        if not isinstance(owner.it, nn.Module):
            try:
                return found | things(getattr(owner.it, name, None))
            except Exception:
                return found
        return found | self._of_module(scope, owner, name, node)

    def _of_module(self, scope: Scope, owner: Thing, name: str, node: ast.AST | None) -> Values:
        module = owner.it
        if module._modules.get(name) is not None:
            return things(module._modules[name])
        if name in ("_modules", "_parameters", "_buffers"):
            return boxed(NOTHING.union(*map(things, getattr(module, name).values())))
        if name == "__dict__":
            return things(vars(module))
        if name == "__class__":
            return self.class_of(scope, owner, node)
        leaf = is_leaf(module)
        tensor = module._parameters.get(name, module._buffers.get(name))
        if leaf and (tensor is not None or (name not in USUAL and hasattr(module, name))):
            self.look(scope, module, name, node)
        if tensor is not None:
            weight = Weight(id(tensor), name, tensor, module)
            if not leaf and not (not self.answers and self._guarded(scope, node)):
                scope.frame.weights[weight.key] = weight  # None stands there if it is folded
            return frozenset({weight})
        if leaf and isinstance(vars(module).get(name), torch.Tensor):
            return NOTHING.union(*map(things, module.parameters()))  # a hook computes it of these
        if name in vars(module):
            return things(vars(module)[name])
        inner = getattr(module._modules.get("parametrizations"), "_modules", {}).get(name)
        if inner is not None:
            return NOTHING.union(*map(things, [*inner.parameters(), *inner.buffers()]))
        found = self._of_class(scope, owner, type(module).__mro__, name)
        if not found and not hasattr(type(module), name):
            for kind in type(module).__mro__:
                getter = vars(kind).get("__getattr__")
                if kind is not nn.Module and getter is not None and not leaf:
                    bound = Bound(id(getter), owner, "__getattr__", getter)
                    return self.call(scope, bound, [frozenset({Text(name)})], {}, None)
        return found

    def class_of(self, scope: Scope, owner: Thing, node: ast.AST | None) -> Values:
        if self.answers:
            self.look(scope, owner.it, "__class__", node)
        return frozenset({Thing(id(type(owner.it)), type(owner.it))})

    def _of_class(self, scope: Scope, owner: Any, kinds: tuple[type, ...], name: str) -> Values:
        values, getters = member_of(owner, kinds, name) or (NOTHING, [])
        for getter in getters:
            if hasattr(getter, "__code__") and getter.__module__.partition(".")[0] != "torch":
                values |= self.call(scope, Bound(id(getter), owner, name, getter), [], {}, None)
        return values

    def _of_weight(self, scope: Scope, weight: Weight, name: str) -> Values:
        if name in METADATA:
            if name in SIZES and weight.owner is not None:
                self.look(scope, weight.owner, f"{weight.name}.{name}", None)
            return NOTHING
        if name in ("data", "grad"):
            return frozenset({weight})
        if not name.endswith("_"):
            self.consume(scope, frozenset({weight}))
        return NOTHING

    def _Subscript(self, scope: Scope, node: ast.Subscript) -> Values:
        values = self.value(scope, node.value)
        where = self.value(scope, node.slice)
        found: set[Any] = set()
        for each in values:
            module = each.it if isinstance(each, Thing) else None
            if isinstance(module, LISTS):
                found |= self._picked(module, node.slice, where)
            elif isinstance(module, nn.Module):
                for own in self.member(scope, each, "__getitem__", node):
                    found |= apply(self, scope, own, None, [where], {}, None)
            elif isinstance(each, Weight):
                self.consume(scope, frozenset({each}))
            elif isinstance(each, Text):
                found.add(Text("*"))
            else:
                found |= elements(frozenset({each}))
        return boxed(frozenset(found)) if isinstance(node.slice, ast.Slice) else frozenset(found)

    def _picked(self, module: nn.Module, where: ast.AST, names: Values) -> Values:
        """An element of a list, or some of them."""
        children: Any = module
        try:
            index = ast.literal_eval(where)
            return things(children[index])
        except (ValueError, KeyError, IndexError, TypeError, NotImplementedError):
            pass
        if isinstance(where, ast.Slice):
            parts = [where.lower, where.upper, where.step]
            try:
                ends = [None if part is None else ast.literal_eval(part) for part in parts]
                return frozenset().union(*map(things, list(module.children())[slice(*ends)]))
            except (ValueError, TypeError):
                pass
        return frozenset().union(*map(things, module.children()))

    def _Call(self, scope: Scope, node: ast.Call) -> Values:
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            return self._super(scope, node)
        args, rest = [], None
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                rest = (rest or NOTHING) | self.iterated(scope, argument.value)
            else:
                args.append(self.value(scope, argument))
        if rest is not None:
            args, rest = [], rest.union(*args)
        named: dict[str, Values] = {}
        for keyword in node.keywords:
            values = self.value(scope, keyword.value)
            if keyword.arg is None:
                rest = (rest or NOTHING) | elements(values)
            else:
                named[keyword.arg] = values
        if isinstance(node.func, ast.Attribute):
            self._grow(scope, node.func, args)
        called = self.value(scope, node.func)
        found: set[Any] = set()
        for each in called:
            found |= apply(self, scope, each, node, args, named, rest)
        if not called:  # a method of what was computed
            for values in [*args, *named.values(), rest or NOTHING]:
                self.consume(scope, values)
                if not isinstance(node.func, ast.Attribute) or node.func.attr not in GROWS:
                    self.escape(scope, values)
        return frozenset(found)

    def _grow(self, scope: Scope, func: ast.Attribute, args: list[Values]) -> None:
        """convs.append(self.conv)"""
        if func.attr not in GROWS or not isinstance(func.value, ast.Name | ast.Attribute):
            return
        inside = frozenset().union(*args)
        inside = elements(inside) if func.attr in ("extend", "update") else inside
        if inside and isinstance(func.value, ast.Name):
            inside = boxed(inside) | self.value(scope, func.value)
            scope.names[func.value.id] = inside
        elif inside:
            self.bind(scope, func.value, boxed(inside), None)

    def _super(self, scope: Scope, node: ast.Call) -> Values:
        inner: Scope | None = scope
        while inner is not None and "__class__" not in inner.names:
            inner = inner.outer
        homes = inner.names["__class__"] if inner is not None else NOTHING
        found: set[Any] = set()
        for home in homes:
            owner = getattr(home.owner, "owner", None)
            kind = getattr(owner, "kind", None) or type(getattr(owner, "it", None))
            kinds, above = list(kind.__mro__), home.above
            if node.args:
                above = tuple(e.it for e in self.value(scope, node.args[0]) if isinstance(e, Thing))
            after = kinds.index(above[0]) + 1 if above and above[0] in kinds else 1
            found.add(Super(owner, tuple(kinds[after:])))
        return frozenset(found)

    def _Lambda(self, scope: Scope, node: ast.Lambda) -> Values:
        return frozenset({Closure((id(node), id(scope)), node, scope)})

    def _Tuple(self, scope: Scope, node: Any) -> Values:
        found: set[Any] = set()
        for part in node.elts:
            if isinstance(part, ast.Starred):
                found |= self.iterated(scope, part.value)
            else:
                found |= self.value(scope, part)
        return boxed(frozenset(found))

    _List = _Set = _Tuple

    def _Dict(self, scope: Scope, node: ast.Dict) -> Values:
        found: set[Any] = set()
        for name, part in zip(node.keys, node.values, strict=True):
            values = self.value(scope, part)
            found |= self.value(scope, name)
            found |= values if name is not None else elements(values)
        return boxed(frozenset(found))

    def _ListComp(self, scope: Scope, node: Any) -> Values:
        guards: set[str] = set()
        scope.guards.append(guards)
        before = scope.names.copy()
        for part in node.generators:
            self.bind(scope, part.target, self.iterated(scope, part.iter), _called_in(part))
            for test in part.ifs:
                self.value(scope, test)
                guards |= guarded_by(test)
        found: set[Any] = set()
        for name in ("elt", "key", "value"):
            found |= self.value(scope, getattr(node, name, None))
        scope.guards.pop()
        scope.names = before
        return boxed(frozenset(found))

    _SetComp = _GeneratorExp = _DictComp = _ListComp

    def _IfExp(self, scope: Scope, node: ast.IfExp) -> Values:
        self.value(scope, node.test)
        scope.guards.append(guarded_by(node.test))
        found = self.value(scope, node.body)
        scope.guards.pop()
        return found | self.value(scope, node.orelse)

    def _BoolOp(self, scope: Scope, node: ast.BoolOp) -> Values:
        found: Values = NOTHING
        scope.guards.append(set())
        for part in node.values:
            found |= self.value(scope, part)
            scope.guards[-1] |= guarded_by(part)
        scope.guards.pop()
        return found

    def _NamedExpr(self, scope: Scope, node: ast.NamedExpr) -> Values:
        values = self.value(scope, node.value)
        self.bind(scope, node.target, values, node.value)
        return values

    def _BinOp(self, scope: Scope, node: ast.BinOp) -> Values:
        left, right = self.value(scope, node.left), self.value(scope, node.right)
        self.consume(scope, left | right)
        if any(isinstance(each, Text) for each in left | right):
            return frozenset({Text("*")})
        return frozenset(each for each in left | right if isinstance(each, Box))

    def _UnaryOp(self, scope: Scope, node: ast.UnaryOp) -> Values:
        self.consume(scope, self.value(scope, node.operand))
        return NOTHING

    def _Compare(self, scope: Scope, node: ast.Compare) -> Values:
        values = [self.value(scope, part) for part in (node.left, *node.comparators)]
        if not all(isinstance(how, ast.Is | ast.IsNot | ast.In | ast.NotIn) for how in node.ops):
            self.consume(scope, NOTHING.union(*values))
        return NOTHING

    def _Yield(self, scope: Scope, node: Any) -> Values:
        values = self.value(scope, node.value)
        values = elements(values) if isinstance(node, ast.YieldFrom) else values
        scope.result |= boxed(values)
        return NOTHING

    _YieldFrom = _Yield


GROWS = {"append", "extend", "add", "insert", "update", "setdefault", "appendleft"}
