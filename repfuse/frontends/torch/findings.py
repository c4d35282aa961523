"""The report of a plan on a module: its regions, once for every pattern of arguments."""

from __future__ import annotations

from collections import Counter

from torch import fx

from repfuse.compiler import Alternatives
from repfuse.cost import Target
from repfuse.findings import add_refusals, region_report
from repfuse.frontends.torch.assemble import Patch
from repfuse.frontends.torch.edits import Region
from repfuse.frontends.torch.lowered import Lowered
from repfuse.graph import Value
from repfuse.report import RefusalReport, Report
from repfuse.select import Selection

__all__ = ["collect"]


def collect(
    report: Report,
    lowered: Lowered,
    found: Alternatives,
    selection: Selection,
    patches: list[Patch],
    unwritable: list[tuple[Region, str]],
    target: Target,
) -> None:
    """Fill the report of a finished plan."""
    report.untraced = dict(lowered.traces.failures)
    report.capped = [lowered.graph.nodes[value].label for value in found.capped]
    counted: set[Value] = set()
    for patch in patches:
        for region in _once_per_pattern(lowered, patch.regions):
            removed = {
                lowered.root_of.get(node, lowered.value_of[node])
                for node in region.removed
                if node in lowered.value_of
            } - lowered.moved.keys()
            removed |= region.bare.keys()
            terms = region.choice.terms
            row = region_report(found, region.value, terms, removed, counted, target)
            report.regions.append(row)
    written = {region.value for patch in patches for region in patch.regions}
    for region, reason in unwritable:
        if region.value in written:
            continue
        written.add(region.value)  # the first reason is enough
        where, what = lowered.graph.nodes[region.value].label, lowered.graph.describe(region.value)
        report.refusals.append(RefusalReport(where, what, "rewrite", reason))
    add_refusals(found, selection, report, target)
    report.refusals = list(dict.fromkeys(report.refusals))
    report.kept = list(dict.fromkeys(report.kept))


def _once_per_pattern(lowered: Lowered, regions: list[Region]) -> list[Region]:
    """A region that every argument pattern of a method has is shown for one of them."""
    seen: dict[tuple[object, ...], Counter[fx.Graph]] = {}
    shown = []
    for region in regions:
        trace = lowered.node_of[region.value].graph
        counts = seen.setdefault(region.signature, Counter())
        counts[trace] += 1
        if counts[trace] > max((n for other, n in counts.items() if other is not trace), default=0):
            shown.append(region)
    return shown
