"""A random network as a program: classes of layers and statements, which can be run or printed.

That the network is source code makes a failure a script, and its shrinking a deletion of lines.
"""

from __future__ import annotations

import keyword
import linecache
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.numerics import randomize

__all__ = ["DEFAULT", "Body", "Options", "Program", "Statement", "names_in", "run", "unread"]

NAME = re.compile(r"\b[a-z]\w*\b")
LAYER = re.compile(r"\bself\.(\w+)")
DEFINED = re.compile(r"(?:def|class) (\w+)|self\.(\w+) =")
FILE = "<random network>"
INDENT = "        "
CALL = re.compile(r"\b(?:nn|F|torch|optim)(?:\.\w+)*\.(\w+)|\.(\w+)\(")


@dataclass(frozen=True)
class Statement:
    """`target = source`, or a statement that gives no name where the target is empty. More lines
    of the source are statements that change the target."""

    target: str
    source: str

    def __str__(self) -> str:
        return f"{self.target} = {self.source}" if self.target else self.source


@dataclass(frozen=True)
class Body:
    """One class: what its layers are made by, its statements in order, and what it returns."""

    name: str
    arguments: str
    layers: tuple[tuple[str, str], ...]
    statements: tuple[Statement, ...]
    result: str

    def source(self) -> str:
        used = set(LAYER.findall(self.code()))
        made = [f"self.{name} = {source}" for name, source in self.layers if name in used]
        if any("self.register" in source for _, source in self.layers):
            made = [line.partition(" = ")[2] if "self.register" in line else line for line in made]
        return "\n".join(
            [
                f"class {self.name}(nn.Module):",
                "    def __init__(self):",
                "        super().__init__()",
                *(INDENT + line for line in made),
                "",
                f"    def forward(self, {self.arguments}):",
                *(INDENT + line for line in self.code().splitlines()),
            ]
        )

    def code(self) -> str:
        return "\n".join([*map(str, self.statements), f"return {self.result}"])

    def without(self, index: int, instead: str = "") -> Body:
        """One statement less; `instead` takes the place of its value."""
        gone = self.statements[index]
        kept = list(self.statements)
        del kept[index]

        def renamed(text: str) -> str:
            return re.sub(rf"\b{gone.target}\b", instead, text) if gone.target else text

        after = [
            Statement(renamed(one.target), renamed(one.source)) if place >= index else one
            for place, one in enumerate(kept)
        ]
        return replace(self, statements=tuple(after), result=renamed(self.result))


@dataclass(frozen=True)
class Options:
    """How a network is fused, and the dtype of its weights."""

    target: str = "cpu"
    shapes: tuple[int, ...] | None = None
    dynamic: bool = False
    inplace: bool = False
    dtype: str = "float64"

    def planned(self) -> dict[str, Any]:
        """What `plan` takes of it."""
        return {"target": self.target, "shapes": self.shapes, "dynamic": self.dynamic}

    def names(self) -> list[str]:
        """What is not as by default, in words."""
        found = [f"target={self.target}"] if self.target != "cpu" else []
        found += [name for name in ("shapes", "dynamic", "inplace") if getattr(self, name)]
        return found + ([self.dtype] if self.dtype != "float64" else [])


DEFAULT = Options()


@dataclass(frozen=True)
class Program:
    """bodies: classes, each made of those before it, the last one the network. shapes: of its
    input, for each size to check. options: how to fuse it. text: the classes, where they are not
    as the bodies say any more."""

    bodies: tuple[Body, ...]
    shapes: tuple[tuple[int, ...], ...]
    seed: int = 0
    options: Options = DEFAULT
    text: str = ""

    def source(self) -> str:
        """The classes."""
        return self.text or "\n\n\n".join(body.source() for body in self.bodies)

    def build(self) -> nn.Module:
        """The network in its dtype, with weights that hide no mistake."""
        torch.default_generator.manual_seed(self.seed)
        model: nn.Module = run(self.source())[self.bodies[-1].name]()
        return randomize(model.double().eval(), self.seed + 1).to(
            getattr(torch, self.options.dtype)
        )

    def inputs(self) -> list[Tensor]:
        """One random input for each shape, in float64."""
        noise = torch.Generator().manual_seed(self.seed)
        return [torch.randn(s, generator=noise, dtype=torch.float64) for s in self.shapes]

    def operators(self) -> set[str]:
        """The names of all layers, functions and methods that it calls."""
        found = {name or method for name, method in CALL.findall(self.source())}
        own = {name for body in self.bodies for name, _ in body.layers}
        own.update(DEFINED.findall(self.text))
        return found - own - {"Module", "__init__", "Parameter", "randn"}

    def dead(self) -> bool:
        """Whether it makes a value that nothing reads."""
        return any(unread(body.statements, body.result) for body in self.bodies)

    def size(self) -> int:
        """Statements in all."""
        return sum(len(body.statements) for body in self.bodies)

    def script(self) -> str:
        """A whole file that shows what the fused network gives."""
        how = ", ".join(f"{key}={value!r}" for key, value in self.options.planned().items())
        return f"""\
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repfuse
from tests.campaign.gaps import gap, outputs
from tests.numerics import randomize


{self.source()}


torch.default_generator.manual_seed({self.seed})
model = randomize({self.bodies[-1].name}().double().eval(), {self.seed + 1})
model.to(torch.{self.options.dtype})
print(repfuse.plan(model, {how}))
fused = repfuse.fuse(model, {how})
model.double(), fused.double()
noise = torch.Generator().manual_seed({self.seed})
for shape in {list(self.shapes)}:
    x = torch.randn(shape, generator=noise, dtype=torch.float64)
    print(shape, gap(outputs(model, x), outputs(fused, x)))
"""


def run(source: str) -> dict[str, Any]:
    """The names that source code defines; mostly, what they are made of can be read there."""
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "Tensor": Tensor, "__name__": "net"}
    if len(source) % 4:
        linecache.cache[FILE] = len(source), None, source.splitlines(True), FILE
    else:
        linecache.cache.pop(FILE, None)
    exec(compile(source, FILE, "exec"), names)
    return names


def unread(statements: Sequence[Statement], result: str = "") -> list[str]:
    """The values that nothing after them mentions, in order."""
    found, later = [], names_in([result])
    for one in reversed(statements):
        if one.target and one.target not in later:
            found.append(one.target)
        later |= names_in([one.source])
    return found[::-1]


def names_in(texts: Iterable[str]) -> set[str]:
    """The variables that code mentions, and other words that look like one."""
    return {name for text in texts for name in NAME.findall(text) if not keyword.iskeyword(name)}
