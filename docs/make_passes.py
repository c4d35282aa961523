"""Write docs/passes.md, the table of the passes, from the docstrings in passes/.

python -m docs.make_passes
"""

from __future__ import annotations

import sys
from inspect import cleandoc
from pathlib import Path

from repfuse.passes import PASSES
from repfuse.rules import Rule

PAGE = Path(__file__).parent / "passes.md"
HEAD = """\
# The passes

One identity per file of `passes/`, in the order in which they are tried. The form says what a
pass rewrites; the law of each form is tested bit-exactly with integer weights in float64.

| form | rewrites |
|---|---|
| alone | `a(x)` |
| chain | `b(a(x))` |
| siblings | `a(x) + b(x)` |
| beside | `a(x)`, given that `b(x)` is added to it |
| stacked | `concat(a(x), b(x))` along the channels |

A pass refuses where its identity does not hold, and the plan prints the reason. This page is
written by `python -m docs.make_passes`.

| pass | form | what it does | identity | source |
|---|---|---|---|---|
"""


def text() -> str:
    """The page as it should be."""
    return HEAD + "".join(f"| {' | '.join(cells(rule))} |\n" for rule in PASSES)


def cells(rule: Rule) -> tuple[str, ...]:
    """Name, form with its pattern, first sentence, identity and source of a pass."""
    docstring = sys.modules[rule.function.__module__].__doc__
    assert docstring is not None, f"{rule.name} has no docstring"
    title, *paragraphs = cleandoc(docstring).split("\n\n")
    identity = next(one for one in paragraphs if one.startswith("    "))
    source = next(one for one in paragraphs if one.startswith("Source: "))
    patterns = (" or ".join(kind.__name__ for kind in one) for one in rule.patterns)
    return (
        f"[{rule.name}](../passes/{rule.name}.py)",
        f"{rule.form}({', '.join(patterns)})",
        _cell(title),
        f"`{_cell(identity)}`",
        _cell(source.removeprefix("Source: ").rstrip(".")),
    )


def _cell(paragraph: str) -> str:
    return " ".join(paragraph.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
