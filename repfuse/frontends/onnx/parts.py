"""One graph of a model with what was decided for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto

from repfuse.areas import Shapes
from repfuse.compiler import Alternatives, Engine, Forms, compile_graph
from repfuse.cost import Target
from repfuse.frontends.onnx.layout import Layout, lay_out
from repfuse.frontends.onnx.lower import lower
from repfuse.frontends.onnx.lowering import Lowered
from repfuse.frontends.onnx.scopes import scopes_of
from repfuse.graph import Value
from repfuse.report import RefusalReport
from repfuse.select import Choice, Selection, select

__all__ = ["Part", "parts_of"]

FORMS = Forms(uneven_padding=True, affine=True, identity=True, borders=False)
ROUNDS = 32


@dataclass
class Part:
    """One graph of the model with what was planned for it."""

    lowered: Lowered
    engine: Engine
    target: Target
    forbidden: set[tuple[Value, Value]] = field(default_factory=set)
    refusals: list[RefusalReport] = field(default_factory=list)
    found: Alternatives | None = None
    selection: Selection | None = None
    layout: Layout = field(default_factory=Layout)

    def decide(self) -> None:
        """Select until everything that was chosen can be written."""
        graph = self.lowered.graph
        for _ in range(ROUNDS):
            barred = frozenset(self.forbidden)
            self.found = compile_graph(graph, self.engine, barred)
            self.selection = select(self.found, barred, self.target)
            self.layout = lay_out(self.lowered, self.found, self.selection)
            if not (self.layout.lost or self.layout.unwritable):
                return
            for value in self.layout.lost:
                graph.pin(value, "its shape or type is read and nothing else has the same")
            for value in self.layout.unwritable:
                self.forbid(value, self.selection.choices[value])
        self.leave()

    def leave(self) -> None:
        """Nothing is rewritten."""
        self.selection, self.layout = Selection({}), Layout()

    def forbid(self, value: Value, choice: Choice) -> None:
        """Not from these sources, nor from further away."""
        assert self.found is not None
        source = choice.terms[0].source if len(choice.terms) == 1 else -1
        self.forbidden.add((value, source))
        self.forbidden.update((value, other) for other in self.found.of(value) if other <= source)

    def rewritten(self) -> dict[Value, Choice]:
        return {} if self.selection is None else self.selection.rewritten()


def parts_of(
    model: ModelProto,
    folder: Path | None,
    target: Target,
    shapes: Shapes = (),
    dynamic: bool = False,
) -> list[Part]:
    """dynamic: look into products with factors that depend on the input."""
    parts: list[Part] = []
    lowered_of: dict[int, Lowered] = {}
    for scope in scopes_of(model):
        outer = lowered_of[id(scope.parent)].constants if scope.parent else None
        lowered = lower(scope, folder, outer, shapes)
        lowered_of[id(scope)] = lowered
        if dynamic:
            lowered.graph = lowered.graph.opened()
        part = Part(lowered, Engine(forms=FORMS), target)
        part.decide()
        parts.append(part)
    return parts
