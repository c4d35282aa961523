"""Which modules a method that was not traced runs, read from its source.

Unlike its bytecode the source is the same for every Python, and tells what is called from what is
only looked at: many methods list layers, or set and merge their weights, and run none of them.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias

__all__ = ["ANY", "LISTED", "RUNS", "Chain", "Code", "code_of"]

Chain: TypeAlias = tuple[str, ...]
ANY, LISTED = "*", "?"
SAME = {"_modules", "children", "named_children", "modules", "named_modules", "values", "items"}
RUNS = {"forward", "__call__"}
QUESTIONS = {"len", "isinstance", "hasattr", "type", "bool", "id"}
OTHER_ORDERS = {"filter", "map", "reduce", "reversed", "sorted", "zip"}
LOOPS = (ast.For, ast.comprehension, ast.Subscript)


def _replaces_its_argument(call: ast.Call, parent: ast.AST) -> bool:
    """`x = layer(x)`"""
    if not isinstance(parent, ast.Assign) or len(parent.targets) != 1 or call.keywords:
        return False
    names = [*call.args, *parent.targets]
    return (
        len(names) == 2
        and len({n.id for n in names if isinstance(n, ast.Name)}) == 1
        and all(isinstance(name, ast.Name) for name in names)
    )


def _is_super(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Name) and called.id == "super"


@dataclass(eq=False)
class Code:
    """called: chains of names from self that are called. held: chains that are called under a
    local name, or passed on together with data. looked: chains that have a local name of which
    inner is called. values: all that is used otherwise than to call it or to look into it. read:
    what is looked up on self. pairs: for each call of a child by its name what gives its only
    argument, and what alone gets its result; None for anything but another such call. depth: how
    many lists may lie in one another. strings: all that occur in the code. in_turn: whether layers
    are called under local names only as in `x = layer(x)`, from the first one of a list on.
    steered: for each parameter the statements that do something else for another value of it, by
    their place; placed: the places of the statements that speak of a child, by its name. length:
    how many statements there are. above: the methods that are called on super().

    In a chain, ANY stands for every child, and LISTED for those that the strings name.
    """

    called: set[Chain] = field(default_factory=set)
    held: set[Chain] = field(default_factory=set)
    looked: set[Chain] = field(default_factory=set)
    inner: set[str] = field(default_factory=set)
    values: set[Chain] = field(default_factory=set)
    read: set[Chain] = field(default_factory=set)
    pairs: list[tuple[str | None, str | None]] = field(default_factory=list)
    depth: int = 0
    strings: set[str] = field(default_factory=set)
    in_turn: bool = True
    steered: dict[str, set[int]] = field(default_factory=dict)
    placed: dict[str, set[int]] = field(default_factory=dict)
    length: int = 0
    above: set[str] = field(default_factory=set)

    def in_a_row(self, names: list[str]) -> bool:
        """Whether each of the layers gets what the one before gives, which nobody else gets."""
        if len(names) < 2:
            return False
        for one, other in pairwise(names):
            about = [pair for pair in self.pairs if pair[0] == one or pair[1] == other]
            if not about or any(pair != (one, other) for pair in about):
                return False
        return True


@cache
def code_of(function: Any) -> Code | None:
    """None where there is no source."""
    function = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    (first, *_) = tree.body
    if not isinstance(first, ast.FunctionDef):
        return None
    arguments = [*first.args.posonlyargs, *first.args.args]
    return _Reader(first, arguments[0].arg).code if arguments else Code()


class _Reader:
    def __init__(self, function: ast.FunctionDef, own: str) -> None:
        self.own = own
        self.code = Code()
        self.parents = {c: p for p in ast.walk(function) for c in ast.iter_child_nodes(p)}
        parts = [node for node in ast.walk(function) if isinstance(node, ast.Constant)]
        self.code.strings = {part.value for part in parts if isinstance(part.value, str)}
        values = {node: chain for node in ast.walk(function) if (chain := self._value(node))}
        self.data = self._derived(function, _parameters(function) - {own}, {})
        self.code.values.update(values.values())
        self._steering(function)
        locals_ = self._locals(function, values)
        self.code.depth = sum(
            isinstance(node, LOOPS)
            and any(
                part in values or (isinstance(part, ast.Name) and part.id in locals_)
                for part in ast.walk(node.value if isinstance(node, ast.Subscript) else node.iter)
            )
            for node in ast.walk(function)
        )
        for node in ast.walk(function):
            if isinstance(node, ast.Slice) and (node.lower or node.step):
                self.code.in_turn = False
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                self.code.in_turn &= node.func.id not in OTHER_ORDERS
            chain = self.chain(node) if isinstance(node, ast.Attribute) else None
            if chain and isinstance(node.ctx, ast.Load):  # type: ignore[attr-defined]
                self.code.read.add(chain)
            if isinstance(node, ast.Call):
                self._call(node, values, locals_)
        for node in ast.walk(function):
            for block in ("body", "orelse", "finalbody"):
                statements = getattr(node, block, None)
                if isinstance(statements, list):
                    self._pair(statements)

    def _steering(self, function: ast.FunctionDef) -> None:
        """Which statements take another way, or another layer, by what a parameter is."""
        self.code.length = len(function.body)
        for name in _parameters(function) - {self.own}:
            derived = self._derived(function, {name}, {})
            self.code.steered[name] = {
                place
                for place, statement in enumerate(function.body)
                if any(_mentions(part, derived) for part in _deciding(statement))
            }
        for place, statement in enumerate(function.body):
            for node in ast.walk(statement):
                chain = self.chain(node) if isinstance(node, ast.Attribute) else None
                if chain:
                    self.code.placed.setdefault(chain[0], set()).add(place)

    def chain(self, node: ast.AST) -> Chain | None:
        """The names that lead from self to a value."""
        if isinstance(node, ast.Name):
            return () if node.id == self.own else None
        if isinstance(node, ast.Attribute):
            before = self.chain(node.value)
            if before is None or node.attr in SAME:
                return before
            return (*before, node.attr)
        if isinstance(node, ast.Subscript):
            before = self.chain(node.value)
            many = isinstance(node.slice, ast.Slice)
            return before if before is None or many else (*before, ANY)
        if not isinstance(node, ast.Call):
            return None
        if _is_super(node):
            return ()
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "getattr" and len(node.args) > 1:
            return self._named(self.chain(node.args[0]), node.args[1])
        if isinstance(node.func, ast.Attribute):
            if node.func.attr == "get_submodule" and node.args:
                return self._named(self.chain(node.func.value), node.args[0])
            if node.func.attr in SAME:
                return self.chain(node.func.value)
        return None

    def _named(self, before: Chain | None, name: ast.AST) -> Chain | None:
        """The chain of getattr(self, name): f"layer{i}" may be each name that looks like it."""
        if before is None:
            return None
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            return (*before, *name.value.split("."))
        if isinstance(name, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else ANY for p in name.values]
            return (*before, "".join(map(str, parts)))
        return (*before, LISTED if self.code.strings else ANY)

    def _value(self, node: ast.AST) -> Chain | None:
        """The chain of an expression that is no part of a longer one, and is not called."""
        chain, parent = self.chain(node), self.parents.get(node)
        if chain is None or parent is None or isinstance(getattr(node, "ctx", None), ast.Store):
            return None
        if isinstance(parent, ast.Attribute | ast.Subscript) or self.chain(parent) is not None:
            return None
        if isinstance(parent, ast.Compare):
            return None
        if isinstance(parent, ast.Call):
            asks = isinstance(parent.func, ast.Name) and parent.func.id in QUESTIONS
            if asks or parent.func is node:
                return None
        listed = not isinstance(node, ast.Name) and chain == ()
        return (ANY,) if listed else chain or None

    def _locals(self, function: ast.FunctionDef, values: dict[ast.AST, Chain]) -> set[str]:
        """Local names that may stand for a module."""
        found: set[str] = set()
        for node in ast.walk(function):
            if node is not function and isinstance(node, ast.FunctionDef | ast.Lambda):
                found |= _parameters(node)
        return self._derived(function, found, values) - {self.own}

    def _derived(
        self, function: ast.FunctionDef, names: set[str], values: dict[ast.AST, Chain]
    ) -> set[str]:
        """The names, and those of what is computed from them or from the values."""
        found, size = set(names), -1
        while size != len(found):
            size = len(found)
            for node in ast.walk(function):
                source = getattr(node, "iter", getattr(node, "value", None))
                targets = getattr(node, "targets", [getattr(node, "target", None)])
                if source is None or targets == [None]:
                    continue
                if any(
                    part in values or (isinstance(part, ast.Name) and part.id in found)
                    for part in ast.walk(source)
                ):
                    for target in targets:
                        stored = ast.walk(target)
                        found.update(each.id for each in stored if isinstance(each, ast.Name))
        return found

    def _call(self, node: ast.Call, values: dict[ast.AST, Chain], locals_: set[str]) -> None:
        chain = self.chain(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr in SAME:
            return
        if chain is not None:
            self.code.called.add(chain)
            if isinstance(node.func, ast.Attribute) and _is_super(node.func.value):
                self.code.above.add(node.func.attr)
        elif _root(node.func) in locals_:
            if isinstance(node.func, ast.Attribute):
                self.code.inner.add(node.func.attr)
                self.code.looked.update(values.values())
            if not isinstance(node.func, ast.Attribute) or node.func.attr in RUNS:
                self.code.held.update(values.values())
                self.code.in_turn &= _replaces_its_argument(node, self.parents[node])
        elif isinstance(node.func, ast.Call):
            self.code.in_turn = False
            self.code.held.update(values[part] for part in ast.walk(node.func) if part in values)
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        for index, argument in enumerate(given):
            later = [part for each in given[index + 1 :] for part in ast.walk(each)]
            names = {part.id for part in later if isinstance(part, ast.Name)}
            if argument in values and names & self.data:
                self.code.held.add(values[argument])

    def _name(self, node: ast.AST) -> str | None:
        """The child that a call calls by its name."""
        chain = self.chain(node.func) if isinstance(node, ast.Call) else None
        return chain[0] if chain and len(chain) == 1 else None

    def _pair(self, statements: list[ast.stmt]) -> None:
        """Which child is given the result of which."""
        for index, statement in enumerate(statements):
            before = statements[index - 1] if index else None
            after = statements[index + 1] if index + 1 < len(statements) else None
            for call in _expressions(statement):
                name = self._name(call)
                if name is None:
                    continue
                assert isinstance(call, ast.Call)
                given = [*call.args, *call.keywords]
                source = self._source(given[0], before, statement) if len(given) == 1 else None
                self.code.pairs.append((source, name))
                parent = self.parents[call]
                reader = self._name(parent) if isinstance(parent, ast.Call) else None
                if reader is None and isinstance(statement, ast.Assign):
                    reader = self._reader(call, statement, after)
                self.code.pairs.append((name, reader))

    def _source(self, given: ast.AST, before: ast.stmt | None, here: ast.stmt) -> str | None:
        name = self._name(given)
        if name is None and isinstance(given, ast.Name) and isinstance(before, ast.Assign):
            called = self._name(before.value)
            if called is not None and self._is_passed(before, here, given.id):
                return called
        return name

    def _reader(self, call: ast.Call, here: ast.Assign, after: ast.stmt | None) -> str | None:
        """The child that the next statement gives the result to."""
        target = here.targets[0]
        if here.value is not call or not isinstance(target, ast.Name) or after is None:
            return None
        if not self._is_passed(here, after, target.id):
            return None
        for other in _expressions(after):
            if isinstance(other, ast.Call) and other.args:
                first = other.args[0]
                if isinstance(first, ast.Name) and first.id == target.id:
                    return self._name(other)
        return None

    def _is_passed(self, one: ast.Assign, other: ast.stmt, name: str) -> bool:
        """Whether the statement after an assignment is the only one that reads the value."""
        (target, *more) = one.targets
        if more or not isinstance(target, ast.Name) or target.id != name:
            return False
        names = [node for node in _expressions(other) if isinstance(node, ast.Name)]
        reads = [n for n in names if n.id == name and isinstance(n.ctx, ast.Load)]
        if len(reads) != 1 or any(isinstance(n, LATER) for n in _expressions(other)):
            return False
        if isinstance(other, ast.Return):
            return True
        return isinstance(other, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id == name for each in other.targets
        )


LATER = (
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.IfExp,
    ast.BoolOp,
)


def _expressions(statement: ast.stmt) -> list[ast.AST]:
    """All of a statement but for the statements inside it."""
    found: list[ast.AST] = []
    todo = list(ast.iter_child_nodes(statement))
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            found.append(node)
            todo += ast.iter_child_nodes(node)
    return found


def _deciding(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions on which it hangs what is run."""
    for node in ast.walk(statement):
        for part in ("test", "iter", "slice", "subject", "ifs"):
            value = getattr(node, part, None)
            yield from value if isinstance(value, list) else [value] if value is not None else []
        if isinstance(node, ast.BoolOp):
            yield node
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            yield from node.args[1:2]


def _mentions(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in names for part in ast.walk(node))


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _parameters(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    return {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
