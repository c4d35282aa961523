"""Plan and apply: from an ONNX model to a fused one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from onnx import ModelProto

from repfuse.arrays import evaluate
from repfuse.compiler import Alternatives, Engine, Forms, compile_graph
from repfuse.cost import CPU, Target, cost_of
from repfuse.errors import RepfuseError
from repfuse.findings import add_refusals, region_report
from repfuse.frontends.onnx.emit import Names, emit
from repfuse.frontends.onnx.layout import Layout, lay_out
from repfuse.frontends.onnx.lower import lower
from repfuse.frontends.onnx.lowering import Lowered
from repfuse.frontends.onnx.patch import Rewrite, apply_layout
from repfuse.frontends.onnx.probe import path_of, probe
from repfuse.frontends.onnx.scopes import Scope, scopes_of
from repfuse.frontends.onnx.shapes import FLOATS
from repfuse.graph import Value, describe
from repfuse.operators import Conv, SlicedConv
from repfuse.report import RefusalReport, Report
from repfuse.rounding import rounded
from repfuse.select import Choice, Selection, select

__all__ = ["Patched", "Plan", "plan_model"]

FORMS = Forms(uneven_padding=True, affine=True)
ROUNDS = 32
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 3.4028234663852886e38}


@dataclass
class _Part:
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
            self.layout = lay_out(self.lowered, self.selection)
            if not (self.layout.lost or self.layout.unwritable):
                return
            for value in self.layout.lost:
                graph.pin(value, "its shape or type is read, and nothing else has the same")
            for value in self.layout.unwritable:
                self.forbid(value, self.selection.choices[value])
        self.selection, self.layout = Selection({}), Layout()

    def forbid(self, value: Value, choice: Choice) -> None:
        """Not from these sources, nor from further away."""
        assert self.found is not None
        source = choice.terms[0].source if len(choice.terms) == 1 else -1
        self.forbidden.add((value, source))
        self.forbidden.update((value, other) for other in self.found.of(value) if other <= source)

    def rewritten(self) -> dict[Value, Choice]:
        return {} if self.selection is None else self.selection.rewritten()


@dataclass
class Patched:
    """A fused model whose new initializers are not in the protobuf yet.

    added: (values, element type) by name, for every graph that got some.
    """

    model: ModelProto
    added: list[tuple[Scope, dict[str, tuple[np.ndarray, int]]]] = field(default_factory=list)


class Plan:
    """What would be merged in an ONNX model, what would not and why.

    Printing a plan shows it; `report` holds the same as an object.
    """

    def __init__(self, model: ModelProto, folder: Path | None, title: str, target: Target) -> None:
        self._model = model
        self._folder = folder
        self._title = title
        self._target = target
        self._parts = _parts(model, folder, target)
        self.report = self._report()

    @property
    def model(self) -> ModelProto:
        """The model that was planned."""
        return self._model

    @property
    def macs(self) -> tuple[float, float]:
        """Multiply-accumulates of all convs and Linears, for one sample: before and after."""
        before = after = 0.0
        for part in self._parts:
            graph = part.lowered.graph
            costs = {
                value: cost_of(node.producer, graph.nodes[graph.operands(value)[0]].area, ())
                for value, node in graph.nodes.items()
                if isinstance(node.producer, Conv | SlicedConv)
            }
            before += sum(cost.macs for cost in costs.values())
            rewritten = part.rewritten()
            kept = set(costs) - set(rewritten)
            if part.selection is not None and part.selection.choices:
                kept &= set(part.selection.choices)
            after += sum(costs[value].macs for value in kept)
            for choice in rewritten.values():
                for term in choice.terms:
                    if isinstance(term.operator, Conv):
                        area = graph.nodes[term.source].area
                        after += cost_of(term.operator, area, ()).macs
        return before, after

    def patch(self, probing: bool = True, inplace: bool = False, progress: Any = None) -> Patched:
        """Write the plan into a copy of the model, or into the model itself.

        progress: called with (done, total) as rewrites are computed.
        """
        model, parts = self._model, self._parts
        if not inplace:
            model = ModelProto()
            model.CopyFrom(self._model)
            parts = _parts(model, self._folder, self._target)
        names = Names(_all_names(model))
        patched = Patched(model)
        total = sum(len(part.rewritten()) for part in parts)
        done: dict[int, int] = {}
        for number, part in reversed(list(enumerate(parts))):  # bodies before what holds them

            def tell(count: int, number: int = number) -> None:
                done[number] = count
                if progress is not None:
                    progress(min(sum(done.values()), total), total)

            rewrites = _compute(part, names, probing, self.report, tell)
            try:
                added = apply_layout(part.lowered, part.layout, rewrites, names)
            except nx.NetworkXUnfeasible:
                scope = part.lowered.scope.path or "the graph"
                text = f"{scope}: its nodes cannot be ordered after the merge, so it stays"
                self.report.errors.append(text)
                continue
            patched.added.append((part.lowered.scope, added))
        self.report.refusals += [r for part in parts for r in part.refusals]
        if inplace:
            self._parts = []
        return patched

    def apply(self, inplace: bool = False, probe: bool = True) -> ModelProto:
        """The fused model. inplace: change the planned model itself instead of a copy. probe:
        prove every rewrite in float64 before it is written."""
        from repfuse.frontends.onnx.write import complete

        if not self._parts:
            raise RepfuseError("this plan was applied in place; plan the model again")
        return complete(self.patch(probe, inplace), self._folder)

    def _report(self) -> Report:
        report = Report(self._title, basis="for one sample of the graph's input size")
        for part in self._parts:
            found, selection, lowered = part.found, part.selection, part.lowered
            assert found is not None and selection is not None
            counted: set[Value] = set()
            for value, choice in part.rewritten().items():
                gone = [
                    member
                    for member in path_of(lowered, value, choice)
                    if member not in selection.choices and member != value
                ]
                report.regions.append(region_report(found, value, choice.terms, gone, counted))
            report.capped += [lowered.graph.nodes[value].label for value in found.capped]
            report.errors += lowered.errors
            if selection.choices:
                add_refusals(found, selection, report)
        report.refusals = list(dict.fromkeys(report.refusals))
        return report

    def __str__(self) -> str:
        return str(self.report)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        yield self.report


def plan_model(
    model: ModelProto, folder: Path | None = None, title: str = "", target: Target = CPU
) -> Plan:
    """Plan the rewrites of a model. folder: where its external data lies."""
    return Plan(model, folder, title or model.graph.name or "ONNX model", target)


def _parts(model: ModelProto, folder: Path | None, target: Target) -> list[_Part]:
    parts: list[_Part] = []
    lowered_of: dict[int, Lowered] = {}
    for scope in scopes_of(model):
        outer = lowered_of[id(scope.parent)].constants if scope.parent else None
        lowered = lower(scope, folder, outer)
        lowered_of[id(scope)] = lowered
        part = _Part(lowered, Engine(forms=FORMS), target)
        part.decide()
        parts.append(part)
    return parts


def _compute(part: _Part, names: Names, probing: bool, report: Report, tell: Any) -> list[Rewrite]:
    """The weights of all rewrites, proved; what fails is forbidden, and the rest chosen anew."""
    ready: dict[tuple[Any, ...], Rewrite] = {}
    for _ in range(ROUNDS):
        failed = False
        wanted = part.rewritten()
        for count, (value, choice) in enumerate(wanted.items()):
            key = (value, *((t.source, describe(t.operator)) for t in choice.terms))
            if key not in ready:
                fault = _rewrite(part, value, choice, names, probing, ready, key)
                if fault is not None:
                    failed = True
                    _complain(part, value, choice, fault, report)
                    part.forbid(value, choice)
            tell(count + 1)
        if not failed:
            break
        part.decide()
    keys = {
        (value, *((t.source, describe(t.operator)) for t in choice.terms))
        for value, choice in part.rewritten().items()
    }
    return [rewrite for key, rewrite in sorted(ready.items(), key=lambda p: p[0][0]) if key in keys]


def _rewrite(
    part: _Part,
    value: Value,
    choice: Choice,
    names: Names,
    probing: bool,
    ready: dict[tuple[Any, ...], Rewrite],
    key: tuple[Any, ...],
) -> str | None:
    """Compute one rewrite; a text where it cannot be: "!" before it marks a failed probe."""
    lowered = part.lowered
    elem = _elem(lowered, value, choice)
    precision = FLOATS.get(elem)
    if precision is None:
        return "the element type of the result is not known here"
    emitted = emit(lowered, part.engine, value, choice, names)
    arrays = dict(zip(emitted.arrays, evaluate(*emitted.arrays.values()), strict=True))
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return "the weights hold NaN, infinity or a negative variance"
    if probing:
        disagreement = probe(lowered, value, choice, emitted, arrays)
        if disagreement is not None:
            return f"!{disagreement}"
    limit = LARGEST.get(precision, np.inf)
    if any(np.abs(array).max(initial=0.0) > limit for array in arrays.values()):
        return f"the folded weights overflow {precision}"
    constants = {
        name: rounded(_compact(array) if name in emitted.operands else array, precision)
        for name, array in arrays.items()
    }
    emitted.arrays.clear()
    ready[key] = Rewrite(value, emitted, constants, elem)
    return None


def _compact(array: np.ndarray) -> np.ndarray:
    """The operand of a Mul or an Add as a single number where all of its elements are equal."""
    if array.size > 1 and (array == array.flat[0]).all():
        return array.reshape(-1)[:1].reshape((1,) * array.ndim)
    return array


def _elem(lowered: Lowered, value: Value, choice: Choice) -> int:
    """The element type of a value: as inferred, or that of the constants it is made with."""
    elem = lowered.kinds[value].elem
    if elem:
        return elem
    for member in path_of(lowered, value, choice):
        for index in lowered.made_by[member]:
            for name in lowered.scope.protos[index].input:
                if name in lowered.constants and lowered.constants.precision(name):
                    return lowered.constants.kind(name).elem
    return 0


def _complain(part: _Part, value: Value, choice: Choice, fault: str, report: Report) -> None:
    lowered = part.lowered
    label = lowered.graph.nodes[value].label
    if not fault.startswith("!"):
        part.refusals.append(RefusalReport(label, "weights", "fold", fault))
        return
    indices = {i for member in path_of(lowered, value, choice) for i in lowered.made_by[member]}
    nodes = ", ".join(lowered.scope.label(index) for index in sorted(indices))
    report.errors.append(f"{fault[1:]}; nodes {nodes}")


def _all_names(model: ModelProto) -> set[str]:
    found: set[str] = set()
    graphs: list[Any] = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            found.update((node.name, *node.input, *node.output))
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
        for name in ("input", "output", "initializer"):
            found.update(v if isinstance(v, str) else v.name for v in getattr(graph, name, ()))
    return found
