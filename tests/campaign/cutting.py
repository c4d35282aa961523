"""Make a failing source text small: delete statements, and put parts in the place of wholes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

__all__ = ["cut"]

ROUNDS = 12


def cut(source: str, fails: Callable[[str], bool]) -> str:
    """The smallest text that was found; `fails` says whether one is as bad."""
    for _ in range(ROUNDS):
        before = source
        for kind in (_statements, _names, _expressions):
            source = _pass(source, kind, fails)
        if source == before:
            break
    return source


Kind = Callable[[ast.Module], Iterator[Callable[[], None]]]


def _pass(source: str, kind: Kind, fails: Callable[[str], bool]) -> str:
    """Every change once, the last ones first; what still fails stays."""
    place = sum(1 for _ in kind(ast.parse(source)))
    while place:
        place -= 1
        tree = ast.parse(source)
        changes = list(kind(tree))
        if place >= len(changes):
            continue
        changes[place]()
        try:
            text = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
        except (ValueError, TypeError, AttributeError):
            continue
        if text != source and fails(text):
            source = text
    return source


def _statements(tree: ast.Module) -> Iterator[Callable[[], None]]:
    """A statement goes, or what stands inside of it takes its place."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "handlers"):
            block = getattr(node, field, None)
            if not isinstance(block, list):
                continue
            for index, one in enumerate(block):
                yield lambda block=block, index=index: _put(block, index, [])  # type: ignore[misc]
                inner = [] if isinstance(one, ast.FunctionDef | ast.ClassDef) else one
                for name in ("body", "orelse"):
                    inside = getattr(inner, name, None)
                    if isinstance(inside, list) and inside:
                        yield lambda b=block, i=index, n=inside: _put(b, i, n)  # type: ignore[misc]


def _put(block: list[ast.stmt], index: int, instead: list[ast.stmt]) -> None:
    block[index : index + 1] = instead
    if not block:
        block.append(ast.Pass())


def _names(tree: ast.Module) -> Iterator[Callable[[], None]]:
    """`a = b` goes, and what is called a after it is b."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for index, one in enumerate(function.body):
            simple = isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
            if simple and isinstance(one.value, ast.Name):  # type: ignore[attr-defined]
                yield lambda f=function, i=index: _renamed(f, i)  # type: ignore[misc]


def _renamed(function: ast.FunctionDef, index: int) -> None:
    one = function.body.pop(index)
    assert isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
    assert isinstance(one.value, ast.Name)
    for later in function.body[index:]:
        for node in ast.walk(later):
            if isinstance(node, ast.Name) and node.id == one.targets[0].id:
                node.id = one.value.id


def _expressions(tree: ast.Module) -> Iterator[Callable[[], None]]:
    """A part of an expression stands for all of it; an argument or an element goes."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                for part in _parts(value):
                    yield lambda n=node, f=field, p=part: setattr(n, f, p)  # type: ignore[misc]
            if not isinstance(value, list):
                continue
            for index, one in enumerate(value):
                if isinstance(one, ast.expr):
                    for part in _parts(one):
                        yield lambda v=value, i=index, p=part: v.__setitem__(i, p)  # type: ignore[misc]
                if isinstance(one, ast.keyword | ast.arg) or isinstance(node, ast.Tuple | ast.List):
                    yield lambda v=value, i=index: v.pop(i)  # type: ignore[misc]


def _parts(value: ast.expr) -> list[ast.expr]:
    found: list[ast.expr] = []
    if isinstance(value, ast.Call):
        found += value.args
        if isinstance(value.func, ast.Attribute):
            found.append(value.func.value)
    elif isinstance(value, ast.BinOp):
        found += [value.left, value.right]
    elif isinstance(value, ast.UnaryOp):
        found.append(value.operand)
    elif isinstance(value, ast.Subscript):
        found.append(value.value)
    elif isinstance(value, ast.Tuple | ast.List):
        found += value.elts[:1] if len(value.elts) == 1 else []
    elif isinstance(value, ast.IfExp):
        found += [value.body, value.orelse]
    return [one for one in found if not isinstance(one, ast.Starred)]
