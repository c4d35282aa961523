"""Write docs/refusals.md, what every refusal means, from the source, the examples and the texts.

python -m docs.make_refusals

Run it from the root of the checkout; it needs the extra `test`. The sentences are those of
`repfuse.reasons`, where they come from is looked up in the source, what they mean is in
`docs/refusals_text.py`, and what provokes them in `tests/refusals/`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import fill

from docs.refusals_text import TEXTS, THEMES
from repfuse.reasons import REASONS
from tests.refusals import onnx_examples, pass_examples, torch_examples
from tests.refusals.examples import Example

__all__ = ["EXAMPLES", "PAGE", "bare", "sentences", "text"]

PAGE = Path(__file__).parent / "refusals.md"
ROOT = PAGE.parents[1]
EXAMPLES: tuple[Example, ...] = (
    *torch_examples.EXAMPLES,
    *onnx_examples.EXAMPLES,
    *pass_examples.EXAMPLES,
)
# Where a plan gets its sentences from, but for what only checks, reads or writes files.
FOLDERS = ("passes", "repfuse", "repfuse/frontends/torch", "repfuse/frontends/onnx")
LEFT_OUT = {
    *("api.py", "comparison.py", "pytest_plugin.py", "reasons.py"),
    *("files.py", "inputs.py", "interface.py", "sessions.py", "sources.py", "verify.py"),
    *("measured.py", "timing.py", "timings.py"),
}
# What users did wrong, and what the code inside tells itself.
OTHER_ERRORS = {"RepfuseError", "NotEquivalentError", "NameError", "LookupError", "ValueError"}
HEAD = """\
# What stays, and what to change

A plan says of everything that it leaves why it does, in one sentence, and ends with the entries
of this page that explain them. In JSON every refusal has the entry's name as its `id`. In the
sentences below, … stands for what differs from model to model.

The examples are complete: `conv()` is a 3x3 `nn.Conv2d` of 8 channels that keeps the size of its
input, `conv(size=1)` a pointwise one, `norm()` an `nn.BatchNorm2d` of 8 channels, and
`Net(forward, a=..., b=...)` a module with these parts whose forward is `forward(net, x)`. In a
graph, `x` is the input and `n` makes nodes: `n.conv(x)` is a 3x3 Conv that keeps the size. Where it
says so, the plan is asked with `dynamic=True`.
A test runs all of them, and finds the sentence in the plan and the model unchanged. This page is
written by `python -m docs.make_refusals`.
"""


def text() -> str:
    """The page as it should be."""
    themes = {theme: [n for n, about in TEXTS.items() if about.theme == theme] for theme in THEMES}
    parts = [HEAD]
    for theme, names in themes.items():
        links = ", ".join(f"[{name}](#{name})" for name in names)
        parts.append(f"| {theme} | {links} |" + ("\n|---|---|" if theme == THEMES[0] else ""))
    parts.append("")
    for theme, names in themes.items():
        parts += [f"## {theme}\n", *map(entry, names)]
    return "\n".join(parts)


def entry(name: str) -> str:
    """One entry: its sentences with their places, what they mean, what to change, examples."""
    about, lines = TEXTS[name], [f"### {name}\n"]
    for template in REASONS[name]:
        where = ", ".join(dict.fromkeys(_places(bare(template))))
        lines.append(_wrapped(f"- `{template.replace('{}', '…')}` ({where})", "  "))
    lines += ["", _wrapped(f"{about.means} **What to change:** {about.change}") + "\n"]
    for example in EXAMPLES:
        if example.template in REASONS[name]:
            lines += _example(example, len(REASONS[name]) > 1)
    return "\n".join(lines)


def _places(template: str) -> list[str]:
    """Where a sentence stands; an open end of it may be more than one thing in the source."""
    found = sentences()
    begins = template.removesuffix("{}")
    longer = (
        place for sentence in found if sentence.startswith(begins) for place in found[sentence]
    )
    return found.get(template) or list(longer)


def _example(example: Example, named: bool) -> Iterator[str]:
    """How one sentence is provoked, or why nothing does."""
    about = f"`{example.template.replace('{}', '…')}`: " if named else ""
    if example.kind == "none":
        yield _wrapped(f"{about}no model is known to provoke this sentence: {example.why}.") + "\n"
        return
    if example.kind == "pass":
        yield _wrapped(f"{about}only the pass says it, no plan: {example.why}.") + "\n"
    elif heading := _heading(example, named):
        yield f"{heading}:\n"
    yield f"```py\n{example.code}\n```\n"


def _heading(example: Example, named: bool) -> str:
    """What stands above the code: the sentence, the kind of model and how it is asked for."""
    parts = [f"`{example.template.replace('{}', '…')}`"] if named else []
    parts += ["in a graph"] if example.kind == "ONNX" and not named else []
    parts += ["with `dynamic=True`"] if example.dynamic else []
    heading = ", ".join(parts)
    return heading[:1].upper() + heading[1:]


def _wrapped(paragraph: str, indent: str = "") -> str:
    return fill(
        paragraph, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


@cache
def sentences() -> dict[str, list[str]]:
    """Every sentence in the source, without what it begins with, and where it stands."""
    found: dict[str, list[str]] = {}
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
    for path in paths:
        if path.name in LEFT_OUT:
            continue
        for sentence in _sentences_of(ast.parse(path.read_text("utf-8"))):
            found.setdefault(bare(sentence), []).append(_label(path))
    return found


def bare(template: str) -> str:
    """A sentence without the name of something in front of it, which may be put there elsewhere."""
    return re.sub(r"^\{\}:? ", "", template)


def _label(path: Path) -> str:
    if path.parent.name == "passes":
        return f"[{path.stem}](../passes/{path.name})"
    return {"torch": "modules", "onnx": "ONNX"}.get(path.parent.name, "plan")


def _sentences_of(tree: ast.Module) -> Iterator[str]:
    """The texts of two words or more that are no docstrings and no errors of other kinds."""
    left_out: set[ast.AST] = set()
    for node in ast.walk(tree):
        inside = isinstance(node, ast.JoinedStr) or _is_aside(node)
        left_out.update(part for part in ast.walk(node) if inside and part is not node)
    for node in ast.walk(tree):
        if node not in left_out and isinstance(node, ast.Constant | ast.JoinedStr):
            sentence = _template(node)
            if len(re.findall(r"[A-Za-z]+", sentence)) > 1 and " " in sentence.strip():
                yield sentence


def _is_aside(node: ast.AST) -> bool:
    """Whether no reason stands inside: a docstring, an assertion, an error of another kind."""
    if isinstance(node, ast.Raise):
        called = node.exc.func if isinstance(node.exc, ast.Call) else None
        return isinstance(called, ast.Name) and called.id in OTHER_ERRORS
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, ast.Assert)


def _template(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
    return "".join(map(str, parts))


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
