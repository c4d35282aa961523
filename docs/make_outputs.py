"""Run the Python blocks of the documents, and write what they print into the text block below.

    python -m docs.make_outputs

The blocks of a page run in order and share their names, in an empty folder. A block marked
`text` that follows one marked `python` is its output; `console` marks output that differs from
machine to machine, which is neither compared nor written.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of every fenced block of a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def run(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page as they should be: with what its Python blocks print now."""
    made, printed = [], ""
    with _module(page.name) as module, _empty_folder():
        for language, content in blocks(page):
            if language == "python":
                output = io.StringIO()
                with redirect_stdout(output):
                    exec(compile(content, page.name, "exec"), vars(module))
                lines = output.getvalue().splitlines()
                printed = "".join(f"{line.rstrip()}\n" for line in lines)
            made.append((language, printed if language == "text" else content))
    return made


@contextmanager
def _module(name: str) -> Iterator[ModuleType]:
    """A module for the names of a page, so that its classes can be pickled."""
    module = ModuleType(re.sub(r"\W", "_", name))
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        del sys.modules[module.__name__]


@contextmanager
def _empty_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def main() -> None:
    for page in PAGES:
        made = iter(run(page))

        def fence(_: re.Match[str]) -> str:
            language, content = next(made)  # noqa: B023  (used up before the next page)
            return f"```{language}\n{content}```"

        page.write_text(BLOCK.sub(fence, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
