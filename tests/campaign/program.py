"""A random network as a program: classes of layers and statements, which can be run or printed.

That the network is source code makes a failure a script, and its shrinking a deletion of lines.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.numerics import randomize

__all__ = ["Body", "Program", "Statement", "names_in"]

NAME = re.compile(r"\b[a-z]\w*\b")
LAYER = re.compile(r"\bself\.(\w+)")
INDENT = "        "


@dataclass(frozen=True)
class Statement:
    """`target = source`, or a statement that gives no name where the target is empty."""

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
class Program:
    """bodies: classes, each made of those before it, the last one the network. shapes: of its
    input, for each size to check."""

    bodies: tuple[Body, ...]
    shapes: tuple[tuple[int, ...], ...]
    seed: int = 0

    def source(self) -> str:
        """The classes."""
        return "\n\n\n".join(body.source() for body in self.bodies)

    def build(self) -> nn.Module:
        """The network in float64, with weights that hide no mistake."""
        torch.manual_seed(self.seed)
        model: nn.Module = run(self.source())[self.bodies[-1].name]()
        return randomize(model.double().eval(), self.seed)

    def inputs(self) -> list[Tensor]:
        """One random input for each shape."""
        noise = torch.Generator().manual_seed(self.seed)
        return [torch.randn(s, generator=noise, dtype=torch.float64) for s in self.shapes]

    def size(self) -> int:
        """Statements in all."""
        return sum(len(body.statements) for body in self.bodies)

    def script(self) -> str:
        """A whole file that shows what the fused network gives."""
        return f"""\
import torch
from torch import nn
from torch.nn import functional as F

import repfuse
from tests.campaign.checks import gap, outputs
from tests.numerics import randomize


{self.source()}


torch.manual_seed({self.seed})
model = randomize({self.bodies[-1].name}().double().eval(), {self.seed})
print(repfuse.plan(model))
fused = repfuse.fuse(model)
noise = torch.Generator().manual_seed({self.seed})
for shape in {list(self.shapes)}:
    x = torch.randn(shape, generator=noise, dtype=torch.float64)
    print(shape, gap(outputs(model, x), outputs(fused, x)))
"""


def run(source: str) -> dict[str, Any]:
    """The names that source code defines."""
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "Tensor": Tensor, "__name__": "net"}
    exec(compile(source, "<random network>", "exec"), names)
    return names


def names_in(texts: Iterable[str]) -> set[str]:
    """The variables that code mentions, and other words that look like one."""
    return {name for text in texts for name in NAME.findall(text) if not keyword.iskeyword(name)}
