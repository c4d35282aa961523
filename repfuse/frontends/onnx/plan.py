"""Plan and apply: from an ONNX model to a fused one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
from onnx import ModelProto

from repfuse.areas import Shapes, basis_of, batch_of, check_shapes
from repfuse.cost import MEASURED, Target, cost_of, target_named
from repfuse.errors import RepfuseError
from repfuse.findings import add_mixtures, add_refusals, region_report
from repfuse.frontends.onnx.emit import Names
from repfuse.frontends.onnx.inputs import check_fit
from repfuse.frontends.onnx.interface import inputs_of, overridable_of
from repfuse.frontends.onnx.layout import Layout
from repfuse.frontends.onnx.parts import Part, parts_of
from repfuse.frontends.onnx.patch import Patched, apply_layout
from repfuse.frontends.onnx.probe import path_of
from repfuse.frontends.onnx.rewrites import compute_rewrites
from repfuse.frontends.onnx.timing import Timer
from repfuse.frontends.onnx.write import complete
from repfuse.graph import Value
from repfuse.measured import measured
from repfuse.operators import Conv, Mixed, SlicedConv
from repfuse.report import RegionReport, Report

__all__ = ["Plan", "plan_model"]


class Plan:
    """What would be merged in an ONNX model, what would not and why.

    Printing a plan shows it; `report` holds the same as an object.
    """

    def __init__(
        self,
        model: ModelProto,
        folder: Path | None,
        title: str,
        target: Target,
        aim: str = "cpu",
        shapes: Shapes = (),
        dynamic: bool = False,
    ) -> None:
        self._model = model
        self._folder = folder
        self._title = title
        self._target = target
        self._aim = aim
        self._shapes = shapes
        self._dynamic = dynamic
        self._used = False
        self._parts, fault = self._read(model)
        self.report = self._report()
        if fault:
            self.report.untraced["the model"] = fault

    def _read(self, model: ModelProto) -> tuple[list[Part], str]:
        """The graphs of a model; none, and why, where they are not understood."""
        try:
            return parts_of(model, self._folder, self._target, self._shapes, self._dynamic), ""
        except Exception as error:
            return [], f"it is not understood, and stays as it is: {type(error).__name__}: {error}"

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
                    if isinstance(term.operator, Conv | Mixed):
                        area = graph.nodes[term.source].area
                        after += cost_of(term.operator, area, ()).macs
        batch = batch_of(self._shapes)
        return before / batch, after / batch

    def patch(self, probing: bool = True, inplace: bool = False, progress: Any = None) -> Patched:
        """Write the plan into a copy of the model, or into the model itself.

        progress: called with (done, total) as rewrites are computed.
        """
        if self._used:
            raise RepfuseError("this plan was applied in place; plan the model again")
        model, parts = self._model, self._parts
        if not inplace:
            model = ModelProto()
            model.CopyFrom(self._model)
            parts, _ = self._read(model)
        names = Names(_all_names(model))
        patched = Patched(model)
        total = sum(len(part.rewritten()) for part in parts)
        done: dict[int, int] = {}
        for number, part in reversed(list(enumerate(parts))):  # bodies before what holds them

            def tell(count: int, number: int = number) -> None:
                done[number] = count
                if progress is not None:
                    progress(min(sum(done.values()), total), total)

            rewrites = compute_rewrites(part, names, probing, self.report, tell)
            # Where nothing is merged, what nobody reads stays, too, but for constants of bodies.
            layout = part.layout if part.rewritten() else Layout()
            try:
                added = apply_layout(part.lowered, layout, rewrites, names)
            except nx.NetworkXUnfeasible:
                scope = part.lowered.scope.path or "the graph"
                text = f"{scope}: its nodes cannot be ordered after the merge, so it stays"
                self.report.errors.append(text)
                part.leave()
                continue
            patched.added.append((part.lowered.scope, added))
        self.report.regions = [row for part in parts for row in _regions(part, self._target)]
        found = [refusal for part in parts for refusal in part.refusals]
        self.report.refusals = list(dict.fromkeys([*self.report.refusals, *found]))
        self.report.errors = list(dict.fromkeys(self.report.errors))
        self._used = inplace
        return patched

    def apply(self, inplace: bool = False, probe: bool = True) -> ModelProto:
        """The fused model. inplace: change the planned model itself instead of a copy. probe:
        prove every rewrite in float64 before it is written."""
        return complete(self.patch(probe, inplace), self._folder)

    def _report(self) -> Report:
        sized = {name for part in self._parts for name in part.lowered.sized}
        basis = basis_of(self._shapes, sized, "for one sample of the graph's input size")
        report = Report(self._title, basis=basis, target=self._aim)
        for part in self._parts:
            assert part.found is not None and part.selection is not None
            report.regions += _regions(part, self._target)
            report.capped += [part.lowered.graph.nodes[v].label for v in part.found.capped]
            report.errors += part.lowered.errors
            add_refusals(part.found, part.selection, report, self._target)
            if not self._dynamic:
                add_mixtures(part.lowered.graph, part.engine, report)
        report.refusals = list(dict.fromkeys(report.refusals))
        return report

    def __str__(self) -> str:
        return str(self.report)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        yield self.report


def _regions(part: Part, target: Target) -> list[RegionReport]:
    """The rows of a report for what is rewritten in a graph."""
    assert part.found is not None and part.selection is not None
    chosen, counted, rows = part.selection.choices, set[Value](), []
    for value, choice in part.rewritten().items():
        path = path_of(part.lowered, value, choice)
        gone = [member for member in path if member not in chosen and member != value]
        rows.append(region_report(part.found, value, choice.terms, gone, counted, target))
    return rows


def plan_model(
    model: ModelProto,
    folder: Path | None = None,
    title: str = "",
    target: str = "cpu",
    shapes: Shapes | None = None,
    tell: Callable[[int], None] = lambda count: None,
    dynamic: bool = False,
) -> Plan:
    """Plan the rewrites of a model. folder: where its external data lies. shapes: those of its
    inputs, where it leaves them open. tell: called as operators are timed, with their number.
    dynamic: look into products with factors that depend on the input."""
    prices, sizes = target_named(target, "onnx"), check_shapes(shapes)
    title = title or model.graph.name or "ONNX model"
    check_fit([*inputs_of(model), *overridable_of(model)], sizes, title)
    if target != MEASURED:
        return Plan(model, folder, title, prices, target, sizes, dynamic)
    timer = Timer()
    prices, timings = measured(prices, timer, timer.machine, sizes, tell)
    try:
        return Plan(model, folder, title, prices, target, sizes, dynamic)
    finally:
        timings.save()


def _all_names(model: ModelProto) -> set[str]:
    found: set[str] = set()
    graphs: list[Any] = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            found.update((node.name, *node.input, *node.output))
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
        for name in ("input", "output", "initializer", "value_info"):
            found.update(v if isinstance(v, str) else v.name for v in getattr(graph, name, ()))
        found.update(tensor.values.name for tensor in getattr(graph, "sparse_initializer", ()))
    return found
