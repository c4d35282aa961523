"""A random network's source as a syntax tree: what is in it, and which names are alive where."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Code", "Place", "attributes", "loaded", "parsed", "stored"]


@dataclass(frozen=True)
class Place:
    """A class, one of its methods, and some statements of it one after the other."""

    owner: ast.ClassDef
    function: ast.FunctionDef
    start: int
    end: int

    def run(self) -> list[ast.stmt]:
        return self.function.body[self.start : self.end]

    def reads(self) -> list[str]:
        """What the statements are given by those before them, in order."""
        before = set(arguments(self.function)) | stored(self.function.body[: self.start])
        return [name for name in loaded(self.run()) if name in before]

    def makes(self) -> list[str]:
        """What the statements give to those after them."""
        after = set(loaded(self.function.body[self.end :]))
        made = stored(self.run())
        names = dict.fromkeys([*loaded(self.run()), *sorted(made)])
        return [name for name in names if name in made and name in after]


@dataclass
class Code:
    """The whole source; dice draw where it is changed."""

    tree: ast.Module
    dice: random.Random
    count: int = 0

    def maybe(self, chance: float = 0.5) -> bool:
        return self.dice.random() < chance

    def fresh(self, prefix: str) -> str:
        """A name that is not there yet."""
        text = ast.unparse(self.tree)
        while f"{prefix}{self.count}" in text:
            self.count += 1
        return f"{prefix}{self.count}"

    def classes(self) -> list[ast.ClassDef]:
        return [node for node in self.tree.body if isinstance(node, ast.ClassDef)]

    def owner(self) -> ast.ClassDef:
        """A class, rather the network's."""
        found = self.classes()
        return found[-1] if self.maybe(0.6) else self.dice.choice(found)

    def init(self, owner: ast.ClassDef) -> ast.FunctionDef | None:
        return method(owner, "__init__")

    def function(self, owner: ast.ClassDef) -> ast.FunctionDef | None:
        """A method that computes something."""
        found = [one for one in methods(owner) if one.name != "__init__" and _plain(one)]
        return self.dice.choice(found) if found else None

    def place(self, longest: int = 4, shortest: int = 1) -> Place | None:
        """Some statements that may become something of their own."""
        owner = self.owner()
        function = self.function(owner)
        if function is None:
            return None
        last = len(function.body) - isinstance(function.body[-1], ast.Return)
        if last < shortest:
            return None
        length = min(last, self.dice.randint(shortest, longest))
        start = self.dice.randint(0, last - length)
        found = Place(owner, function, start, start + length)
        inner = [node for one in found.run() for node in ast.walk(one)]
        kept = (ast.Return, ast.FunctionDef, ast.Lambda, ast.Nonlocal)
        return None if any(isinstance(node, kept) for node in inner) else found

    def layers(self, owner: ast.ClassDef) -> list[tuple[str, ast.expr]]:
        """The layers that the constructor makes, by name."""
        init, found = self.init(owner), []
        for one in init.body if init else ():
            name = assigned(one)
            if name and isinstance(one, ast.Assign):
                text = ast.unparse(one.value)
                if text.startswith("nn.") and not text.startswith("nn.Parameter"):
                    found.append((name, one.value))
        return found

    def visible(self, function: ast.FunctionDef, index: int) -> list[str]:
        """Values that a statement may read."""
        names = set(arguments(function)) | stored(function.body[:index])
        return sorted(name for name in names if name == "x" or name[:1] == "v")


def parsed(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def method(owner: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((one for one in methods(owner) if one.name == name), None)


def methods(owner: ast.ClassDef) -> list[ast.FunctionDef]:
    return [one for one in owner.body if isinstance(one, ast.FunctionDef)]


def assigned(one: ast.stmt) -> str:
    """The attribute of self that a statement sets, if it is `self.name = ...`."""
    target = one.targets[0] if isinstance(one, ast.Assign) else None
    return target.attr if isinstance(target, ast.Attribute) and _is_own(target) else ""


def arguments(function: ast.FunctionDef) -> list[str]:
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [one.arg for one in (given.vararg, given.kwarg) if one]
    return [name for name in names if name != "self"]


def loaded(statements: Iterable[ast.stmt]) -> list[str]:
    """The names that are read, in order; `+=` reads what it changes."""
    found: dict[str, None] = {}
    for one in statements:
        for node in ast.walk(one):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found[node.id] = None
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = None
    return [name for name in found if name != "self"]


def stored(statements: Iterable[ast.stmt]) -> set[str]:
    """The names that are given a value, or are those of functions."""
    nodes = [node for one in statements for node in ast.walk(one)]
    found = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found | {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def attributes(statements: Iterable[ast.AST]) -> Iterator[ast.Attribute]:
    """Every `self.name`."""
    for one in statements:
        for node in ast.walk(one):
            if isinstance(node, ast.Attribute) and _is_own(node):
                yield node


def _is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _plain(function: ast.FunctionDef) -> bool:
    return not function.decorator_list and bool(function.args.args)
