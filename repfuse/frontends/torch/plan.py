"""Plan and apply: from a module to a fused module."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from repfuse.areas import Shapes, basis_of, check_shapes
from repfuse.collector import collector_paused
from repfuse.compiler import Alternatives, Engine, compile_graph
from repfuse.cost import MEASURED, Target, target_named
from repfuse.errors import RepfuseError
from repfuse.findings import add_mixtures
from repfuse.frontends.torch.alone import evaluated, own_modes, single_thread
from repfuse.frontends.torch.assemble import Patch, assemble
from repfuse.frontends.torch.copies import own_tensors, structure_of
from repfuse.frontends.torch.edits import Region
from repfuse.frontends.torch.findings import collect
from repfuse.frontends.torch.lower import lower
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.modules import ValueFault
from repfuse.frontends.torch.names import check_names
from repfuse.frontends.torch.patch import ProbeFailure, build_layers, write_patch
from repfuse.frontends.torch.regions import find_regions, settle
from repfuse.frontends.torch.timing import Timer
from repfuse.frontends.torch.trace import trace_model
from repfuse.graph import Opaque, Value
from repfuse.interruption import uninterrupted, whole
from repfuse.measured import measured
from repfuse.report import RefusalReport, Report
from repfuse.select import select

__all__ = ["Plan", "fuse", "plan"]

ROUNDS = 32


class Plan:
    """What would be merged in a model, what would not and why; `apply` does it.

    Printing a plan shows it; `report` holds the same as an object.
    """

    def __init__(
        self, model: nn.Module, lowered: Lowered, patches: list[Patch], report: Report
    ) -> None:
        self._model = model
        self._lowered = lowered
        self._patches = patches
        self._used = False
        self.report = report

    @whole
    def apply(self, inplace: bool = False, probe: bool = True) -> nn.Module:
        """The fused model, in eval mode.

        inplace: change the planned model itself instead of a copy; weights that were merged are
        freed on the way, and the plan is used up. probe: prove every rewrite in float64 before it
        is written; one that disagrees is left out and reported. Interrupted in place, the model
        computes the same, with some regions merged and others not yet.
        """
        if self._used:
            raise RepfuseError("this plan was applied in place; plan the model again")
        with own_modes():
            if inplace:
                with evaluated(self._model, lambda: self._used):
                    return self._write(self._model, True, probe)
            return self._write(structure_of(self._model), False, probe)

    def _write(self, target: nn.Module, inplace: bool, probe: bool) -> nn.Module:
        # What is replaced in place is freed on the way, the garbage that holds it among it.
        with single_thread(), nullcontext() if inplace else collector_paused():
            for patch in self._patches:
                try:
                    layers = build_layers(patch, self._lowered, probe)
                except ValueFault as fault:
                    self._refuse(patch, str(fault))
                except ProbeFailure as failure:
                    if str(failure) not in self.report.errors:
                        self.report.errors.append(str(failure))
                else:
                    with uninterrupted():
                        self._used = inplace
                        write_patch(target, patch, layers)
                    if inplace:
                        self._release(patch)
        self._used = inplace
        if not inplace:
            own_tensors(target, self._model)
        return target

    def _release(self, patch: Patch) -> None:
        """Let go of the weights that a patch has replaced."""
        lowered = self._lowered
        for node in (node for region in patch.regions for node in region.removed):
            if node in lowered.value_of:
                lowered.graph.nodes[lowered.value_of[node]].producer = Opaque("merged")
            if node.op == "call_module":
                module = lowered.modules[str(node.target)]
                lowered.constants.forget(f"{node.target}.{name}" for name in module.state_dict())
                for part in module.modules():
                    part._parameters.clear()
                    part._buffers.clear()
        patch.layers.clear()
        patch.regions.clear()
        _return_memory()

    def _refuse(self, patch: Patch, reason: str) -> None:
        for region in patch.regions:
            where = self._lowered.graph.nodes[region.value].label
            refusal = RefusalReport(where, "weights", "fold", reason)
            if refusal not in self.report.refusals:
                self.report.refusals.append(refusal)

    def __str__(self) -> str:
        return str(self.report)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        yield self.report


def _return_memory() -> None:
    """Give freed memory back: the C library's heap would keep the holes that old weights leave."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # not the GNU C library
        return None


@whole
def plan(
    model: nn.Module, target: str = "cpu", shapes: Shapes | None = None, dynamic: bool = False
) -> Plan:
    """Plan the rewrites of a model from its structure alone; no weight is read.

    A model in train mode is planned as its eval form. Works on the meta device.
    """
    aim = _Aim.of(target, shapes, dynamic)
    with own_modes():
        return _plan(model, structure_of(model), aim)


@whole
def fuse(
    model: nn.Module,
    inplace: bool = False,
    probe: bool = True,
    target: str = "cpu",
    shapes: Shapes | None = None,
    dynamic: bool = False,
) -> nn.Module:
    """The model with every exactly mergeable branch merged, in eval mode."""
    aim = _Aim.of(target, shapes, dynamic)
    with own_modes():
        with collector_paused():
            try:
                skeleton = structure_of(model)
            except RepfuseError:
                if not inplace:
                    raise
                with evaluated(model):  # what cannot be copied is traced itself
                    made = _plan(model, model, aim)
            else:
                made = _plan(model, skeleton, aim)
            if not inplace:  # the plan is garbage once, after all of it was used
                return made._write(skeleton, False, probe)
        return made.apply(True, probe)


@dataclass(frozen=True)
class _Aim:
    """What a plan is for: the name of the target, its prices, the shapes of the inputs; whether
    products with factors that depend on the input are looked into."""

    name: str
    prices: Target
    shapes: Shapes
    dynamic: bool

    @classmethod
    def of(cls, name: str, shapes: Shapes | None, dynamic: bool) -> _Aim:
        return cls(name, target_named(name), check_shapes(shapes), dynamic)


def _plan(model: nn.Module, skeleton: nn.Module, aim: _Aim) -> Plan:
    if isinstance(model, type):
        raise RepfuseError(f"a torch.nn.Module is needed; {model.__name__} is a class, call it")
    if not isinstance(model, nn.Module):
        raise RepfuseError(f"a torch.nn.Module is needed, not {type(model).__name__}")
    with collector_paused():
        if aim.name != MEASURED:
            return _plan_structure(model, skeleton, aim)
        timer = Timer(model)
        prices, timings = measured(aim.prices, timer, timer.machine, aim.shapes)
        try:
            return _plan_structure(model, skeleton, replace(aim, prices=prices))
        finally:
            timings.save()


def _plan_structure(model: nn.Module, skeleton: nn.Module, aim: _Aim) -> Plan:
    traces = trace_model(skeleton)
    check_names(aim.shapes, model, traces)
    lowered = lower(skeleton, traces, aim.shapes)
    if aim.dynamic:
        lowered.graph = lowered.graph.opened()
    engine = Engine()
    forbidden: set[tuple[Value, Value]] = set()
    unwritable: list[tuple[Region, str]] = []
    for _ in range(ROUNDS):
        found = compile_graph(lowered.graph, engine, frozenset(forbidden))
        selection = select(found, frozenset(forbidden), aim.prices)
        regions = find_regions(lowered, selection)
        # What is left of blocked regions is not written: it need not be alike in every call.
        patches = [] if regions.blocked else assemble(lowered, regions, engine.in_full)
        if not regions.blocked:
            break
        unwritable += regions.blocked
        for region, _ in regions.blocked:
            for key in region.keys:
                forbidden.update({key} if region.by_memory else _beyond(found, *key))
    else:
        settle(lowered, regions)
        patches = assemble(lowered, regions, engine.in_full)
        patches = _independent(patches, [region for region, _ in regions.blocked])
    basis = basis_of(aim.shapes, lowered.sized)
    report = Report(type(model).__name__, basis=basis, target=aim.name)
    collect(report, lowered, found, selection, patches, unwritable, aim.prices)
    report.errors += lowered.errors
    if not aim.dynamic:
        add_mixtures(lowered.graph, engine, report)
    return Plan(model, lowered, patches, report)


def _beyond(found: Alternatives, value: Value, source: Value) -> set[tuple[Value, Value]]:
    """What was not writable from one source is not writable from further away either."""
    further = {(value, other) for other in found.of(value) if other <= source}
    return further | {(value, source)}


def _independent(patches: list[Patch], blocked: list[Region]) -> list[Patch]:
    """The patches that remove nothing that a region left as it was still needs."""
    while True:
        needed = {node for region in blocked for node in region.removed}
        lost = [
            patch
            for patch in patches
            if any(node in needed for region in patch.regions for node in region.removed)
        ]
        if not lost:
            return patches
        patches = [patch for patch in patches if patch not in lost]
        blocked = blocked + [region for patch in lost for region in patch.regions]
