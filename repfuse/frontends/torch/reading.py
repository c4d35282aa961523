"""Read a method that was not traced: what it uses of the layers and weights of one module.

The method is run as it were with sets of objects instead of values, over all its branches, through
functions inside it, its own helper methods, properties, and Python functions that are given a part
of the model. What such a part is given to otherwise, nobody knows: it counts as used.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from torch import nn

from repfuse.frontends.torch.called import apply
from repfuse.frontends.torch.expressions import Expressions
from repfuse.frontends.torch.frames import Frame, Scope
from repfuse.frontends.torch.objects import (
    NOTHING,
    Bound,
    Closure,
    Super,
    Thing,
    Values,
    Weight,
    boxed,
    elements,
    found_in,
    member_of,
    things,
)
from repfuse.frontends.torch.weights import tensors_named
from repfuse.frontends.torch.written import called_in, defined, guarded_by, node_of, outer_of

__all__ = ["Reading"]

PASSES = 3
ROUNDS, CALLS = 20, 3000  # of calls inside of calls, and of calls in all


def _may_end(statement: ast.AST) -> bool:
    ends = (ast.Return, ast.Raise)
    return any(isinstance(part, ends) for part in ast.walk(statement))


class Reading(Expressions):
    def __init__(self, answers: bool) -> None:
        super().__init__(answers)
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
                self.bind(scope, node.target, values, called_in(node))
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
                self.part(scope, part)
                scope.join(before)
        elif isinstance(node, ast.Match):
            self.value(scope, node.subject)
            for case in node.cases:
                before = scope.names.copy()
                self.part(scope, case)
                scope.join(before)
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                values = self.value(scope, item.context_expr)
                if item.optional_vars is not None:
                    self.bind(scope, item.optional_vars, values, item.context_expr)
            self.block(scope, node.body)
        elif isinstance(node, ast.Nonlocal):
            scope.shared.update(node.names)
        else:
            for part in ast.iter_child_nodes(node):
                self.part(scope, part)

    def part(self, scope: Scope, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self.statement(scope, node)
        elif isinstance(node, ast.expr):
            self.value(scope, node)
        else:
            for part in ast.iter_child_nodes(node):
                self.part(scope, part)

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
        if isinstance(target, ast.Name) and target.id in scope.shared:
            scope.home(target.id).join({target.id: values})
        elif isinstance(target, ast.Name):
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
