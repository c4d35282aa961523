"""Delete each `require` of each pass in turn, and expect the tests to turn red.

    python -m tests.mutate_requires             every require deleted, one at a time
    python -m tests.mutate_requires --parts     also every part of a condition, and every name
                                                that a loop of requires goes through

Works on copies of the tree; not part of the default run. Exit code 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("passes", "repfuse", "tests", "pyproject.toml")
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header")
# The tables first, for they are quick. A row must turn red, not the census of rows.
TESTS = (
    "tests/passes",
    "--ignore=tests/passes/test_requires.py",
    "tests/test_laws.py",
    "tests/test_compose_border.py",
)


@dataclass(frozen=True)
class Mutant:
    """A pass with one statement replaced."""

    file: str
    line: int
    what: str
    source: str


@dataclass(frozen=True)
class Verdict:
    mutant: Mutant
    killer: str  # the test that turned red; empty: the mutant survived


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", action="store_true", help="mutate parts of conditions too")
    parser.add_argument("--jobs", type=int, default=2, help="test runs at a time (2)")
    arguments = parser.parse_args()

    mutants = [
        mutant
        for path in sorted((ROOT / "passes").glob("*.py"))
        for mutant in mutants_of(path, arguments.parts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for job in range(arguments.jobs):
            trees.put(copy_tree(Path(folder) / str(job)))
        if first := red_test(trees.queue[0]):
            print(f"the tests fail without any change: {first}")
            return 1
        with ThreadPoolExecutor(arguments.jobs) as pool:
            verdicts = []
            for verdict in pool.map(lambda mutant: judge(mutant, trees), mutants):
                verdicts.append(verdict)
                print(row(verdict), flush=True)

    killed = sum(bool(verdict.killer) for verdict in verdicts)
    print(f"{killed} of {len(verdicts)} mutants turned the tests red")
    return 0 if killed == len(verdicts) else 1


def row(verdict: Verdict) -> str:
    mutant = verdict.mutant
    place = f"{mutant.file}:{mutant.line}"
    return f"{place:26} {mutant.what[:60]:60} {verdict.killer or 'SURVIVED'}"


def copy_tree(target: Path) -> Path:
    target.mkdir()
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target / name)
    return target


def judge(mutant: Mutant, trees: queue.Queue[Path]) -> Verdict:
    tree = trees.get()
    path = tree / "passes" / mutant.file
    before = path.read_text()
    try:
        path.write_text(mutant.source)
        return Verdict(mutant, red_test(tree))
    finally:
        path.write_text(before)
        trees.put(tree)


def red_test(tree: Path) -> str:
    """The first test that fails in a tree, "" if none does."""
    settings = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
    run = subprocess.run(
        [sys.executable, *PYTEST, *TESTS],
        cwd=tree,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0:
        return ""
    found = [line for line in run.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return found[0].split(" - ")[0] if found else f"pytest ended with {run.returncode}"


def mutants_of(path: Path, parts: bool) -> Iterator[Mutant]:
    source = path.read_text()
    tree = ast.parse(source)
    for node in requires_of(tree):
        text = " ".join(ast.unparse(node).split())
        yield Mutant(path.name, node.lineno, f"- {text}", replaced(source, node, "pass"))
        if parts:
            for weaker in without_parts(node):
                changed = ast.unparse(weaker)
                what = f"~ {' '.join(changed.split())}"
                yield Mutant(path.name, node.lineno, what, replaced(source, node, changed))
    for loop in ast.walk(tree) if parts else ():
        if isinstance(loop, ast.For) and isinstance(loop.iter, ast.Tuple) and requires_of(loop):
            for index, name in enumerate(loop.iter.elts):
                shorter = copy.deepcopy(loop.iter)
                del shorter.elts[index]
                what = f"- {ast.unparse(name)} of the loop"
                changed = ast.unparse(shorter)
                yield Mutant(path.name, name.lineno, what, replaced(source, loop.iter, changed))


def requires_of(tree: ast.AST) -> list[ast.Expr]:
    """The statements `require(condition, reason)`."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "require"
    ]


def without_parts(statement: ast.Expr) -> Iterator[ast.Expr]:
    """The statement without one operand of an `and` or `or` in its condition, each in turn."""
    for place, node in enumerate(ast.walk(statement)):
        if isinstance(node, ast.BoolOp):
            for index in range(len(node.values)):
                weaker = copy.deepcopy(statement)
                twin = list(ast.walk(weaker))[place]
                assert isinstance(twin, ast.BoolOp)
                del twin.values[index]
                yield weaker


def replaced(source: str, node: ast.expr | ast.stmt, text: str) -> str:
    """The source with other text in the place of a node."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    lines = source.encode().splitlines(keepends=True)
    first, last = lines[node.lineno - 1], lines[node.end_lineno - 1]
    lines[node.lineno - 1 : node.end_lineno] = [
        first[: node.col_offset] + text.encode() + last[node.end_col_offset :]
    ]
    return b"".join(lines).decode()


if __name__ == "__main__":
    sys.exit(main())
