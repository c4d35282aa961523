"""The source of functions, and what it says of what they are given."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "called_in",
    "defined",
    "gives_something",
    "guarded_by",
    "node_of",
    "outer_of",
    "takes_data",
]

TORCH = str(Path(torch.__file__).parent)
NO_DATA = {
    "int", "bool", "str", "float", "None", "Optional", "Union", "Callable", "Literal", "Path",
    "PathLike", "os", "typing", "torch", "dtype", "device",
}  # fmt: skip
LISTS = {"List", "Tuple", "Dict", "Sequence", "Iterable", "Set", "list", "tuple", "dict", "set"}
TESTS = {"isinstance", "hasattr", "getattr", "issubclass", "type", "callable"}


def outer_of(called: Any) -> Any:
    """The function itself, without what torch wraps around it."""
    function = getattr(called, "function", getattr(called, "it", called))
    while hasattr(function, "__wrapped__"):
        code = getattr(function, "__code__", None)
        if code is not None and not code.co_filename.startswith(TORCH):
            break
        function = function.__wrapped__
    return function


@cache
def node_of(function: Any) -> ast.FunctionDef | None:
    """None where there is no source."""
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    (first, *_) = tree.body
    return first if isinstance(first, ast.FunctionDef) else None


def called_in(loop: Any) -> ast.Call | None:
    """The call whose results a loop goes over."""
    return loop.iter if isinstance(loop.iter, ast.Call) else None


def defined(function: Any) -> tuple[type, ...]:
    """The class that super() in a function starts at."""
    names = function.__code__.co_freevars
    cells = dict(zip(names, function.__closure__ or (), strict=False))
    try:
        return (cells["__class__"].cell_contents,)
    except (KeyError, ValueError):
        return ()


def guarded_by(test: ast.AST) -> set[str]:
    """The expressions of which a test asks what they are."""
    found = set()
    for node in ast.walk(test):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in TESTS and node.args:
            found.add(ast.dump(node.args[0]))
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot):
            found.add(ast.dump(node.left))
    return found


def gives_something(function: Any) -> bool:
    """Whether a method returns anything; one that does not sets something."""
    node = node_of(inspect.unwrap(function))
    return node is None or any(
        isinstance(part, ast.Return | ast.Yield | ast.YieldFrom) and part.value is not None
        for part in ast.walk(node)
    )


def takes_data(function: Any) -> bool:
    """Whether a method is given anything but itself that is no option."""
    node = node_of(inspect.unwrap(function))
    if node is None:
        return True
    arguments = node.args
    given = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(
        zip(reversed([each.arg for each in given]), reversed(arguments.defaults), strict=False)
    )
    defaults |= {
        each.arg: default
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is not None
    }
    if arguments.vararg or arguments.kwarg:
        return True
    return any(
        not _is_option(each, defaults.get(each.arg)) and not _is_a_word(node, each.arg)
        for each in [*given[1:], *arguments.kwonlyargs]
    )


def _is_a_word(function: ast.AST, name: str) -> bool:
    """Whether a parameter is only compared with texts: `location == "expansion"`."""
    uses = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == name]
    sides = [
        [each.left, *each.comparators]
        for each in ast.walk(function)
        if isinstance(each, ast.Compare)
    ]
    words = {
        id(side)
        for parts in sides
        for side in parts
        if all(other is side or _is_text(other) for other in parts)
    }
    return bool(uses) and all(id(use) in words for use in uses)


def _is_text(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return all(map(_is_text, node.elts))
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_option(argument: ast.arg, default: ast.AST | None) -> bool:
    if argument.annotation is not None:
        text = argument.annotation
        names = {part.id for part in ast.walk(text) if isinstance(part, ast.Name)}
        names |= {part.attr for part in ast.walk(text) if isinstance(part, ast.Attribute)}
        if any(isinstance(part, ast.Constant) and part.value for part in ast.walk(text)):
            return False
        return names <= NO_DATA | LISTS and not names <= LISTS
    value = default.value if isinstance(default, ast.Constant) else None
    return isinstance(value, bool | str | int | float)
