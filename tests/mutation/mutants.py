"""What is taken away: guards of the recognition, parts of their conditions, steps of patching.

A guard is an `if` that ends in return, raise, continue or break and has no else. A step of
patching is a statement that has an effect outside of its function: a call by itself, an
assignment to an attribute or an item, a deletion.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.mutate_requires import replaced, without_parts

ROOT = Path(__file__).resolve().parents[2]
EXITS = (ast.Return, ast.Raise, ast.Continue, ast.Break)
# Where a selection is written into a model, against where a model is read.
PATCHING = (
    "repfuse/frontends/onnx/emit.py",
    "repfuse/frontends/onnx/patch.py",
    "repfuse/frontends/onnx/rewrites.py",
    "repfuse/frontends/onnx/write.py",
    "repfuse/frontends/torch/assemble.py",
    "repfuse/frontends/torch/edits.py",
    "repfuse/frontends/torch/emit.py",
    "repfuse/frontends/torch/modules.py",
    "repfuse/frontends/torch/patch.py",
    "repfuse/frontends/torch/subclass.py",
    "repfuse/frontends/torch/ties.py",
)
KINDS = ("delete", "invert", "part", "step")


@dataclass(frozen=True)
class Mutant:
    """A file with one statement changed, and the lines that a test has to pass to notice."""

    file: str
    line: int
    kind: str
    what: str
    source: str
    lines: tuple[int, ...]

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def mutants(kinds: Iterable[str], match: str = "") -> list[Mutant]:
    """The mutants of all frontends, by file and line; `match` is a part of the place."""
    found = []
    for path in sorted((ROOT / "repfuse/frontends").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for mutant in mutants_of(name, path.read_text(), name in PATCHING):
            if mutant.kind in kinds and match in mutant.place:
                found.append(mutant)
    return found


def mutants_of(file: str, source: str, patching: bool) -> Iterator[Mutant]:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], EXITS):
            yield from _of_guard(file, source, node)
        elif patching and isinstance(node, ast.stmt) and _is_step(node):
            text = _line(node)
            more = (node.end_lineno or node.lineno) - node.lineno
            changed = replaced(source, node, "pass" + "\n" * more)
            yield Mutant(file, node.lineno, "step", f"- {text}", changed, (node.lineno,))


def _of_guard(file: str, source: str, guard: ast.If) -> Iterator[Mutant]:
    test, taken = guard.test, (guard.body[0].lineno,)
    asked = tuple(range(guard.lineno, (test.end_lineno or guard.lineno) + 1))
    text = f"if {_line(test)}: {_line(guard.body[-1])}"
    never = replaced(source, test, _padded("False", test))
    yield Mutant(file, guard.lineno, "delete", f"- {text}", never, taken)
    inverse = replaced(source, test, _padded(f"not ({ast.unparse(test)})", test))
    yield Mutant(file, guard.lineno, "invert", f"! {text}", inverse, asked)
    for weaker in without_parts(ast.Expr(test)):
        changed = ast.unparse(weaker)
        what = f"~ if {changed}: {_line(guard.body[-1])}"
        yield Mutant(
            file, guard.lineno, "part", what, replaced(source, test, _padded(changed, test)), asked
        )


def _is_step(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.Assign):
        return any(not isinstance(target, ast.Name | ast.Tuple) for target in node.targets)
    return isinstance(node, ast.AugAssign | ast.Delete)


def _padded(text: str, instead_of: ast.expr) -> str:
    """The text on as many lines as what it stands for, so that later lines keep their numbers."""
    more = (instead_of.end_lineno or instead_of.lineno) - instead_of.lineno
    return f"({text}" + "\n" * more + ")"


def _line(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())
