"""What expressions give in a function that is read, and what they use."""

from __future__ import annotations

import ast
from typing import Any

from torch import nn

from repfuse.frontends.torch.called import apply
from repfuse.frontends.torch.frames import Scope
from repfuse.frontends.torch.lookups import Lookups
from repfuse.frontends.torch.objects import (
    LISTS,
    NOTHING,
    Box,
    Closure,
    Text,
    Thing,
    Values,
    boxed,
    elements,
)
from repfuse.frontends.torch.written import called_in, guarded_by

__all__ = ["Expressions"]

GROWS = {"append", "extend", "add", "insert", "update", "setdefault", "appendleft"}


class Expressions(Lookups):
    def part(self, scope: Scope, node: ast.AST) -> None:
        """Whatever a part of the code is."""
        raise NotImplementedError

    def bind(self, scope: Scope, target: Any, values: Values, source: Any) -> None:
        """Names, attributes or elements are set."""
        raise NotImplementedError

    def value(self, scope: Scope, node: Any) -> Values:
        if node is None:
            return NOTHING
        method = getattr(self, f"_{type(node).__name__}", None)
        if method is not None:
            found: Values = method(scope, node)
            return found
        for part in ast.iter_child_nodes(node):
            self.part(scope, part)
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
            scope.home(func.value.id).join({func.value.id: boxed(inside)})
        elif inside:
            self.bind(scope, func.value, boxed(inside), None)

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
            self.bind(scope, part.target, self.iterated(scope, part.iter), called_in(part))
            for test in part.ifs:
                self.value(scope, test)
                guards |= guarded_by(test)
        found: set[Any] = set()
        for name in ("elt", "key", "value"):
            found |= self.value(scope, getattr(node, name, None))
        scope.guards.pop()
        scope.names = before
        return boxed(frozenset(found))

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

    _List = _Set = _Tuple

    _SetComp = _GeneratorExp = _DictComp = _ListComp

    _YieldFrom = _Yield
