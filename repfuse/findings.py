"""What every plan reports: regions with their costs, refusals that still matter, what was kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from repfuse.compiler import Alternatives, Engine, compile_graph
from repfuse.cost import CPU, Cost, cost_of
from repfuse.graph import ARGUMENT, Graph, Opaque, Sum, Value, describe
from repfuse.mixing import PASS
from repfuse.operators import Affine, Conv, Mixed
from repfuse.report import KeptReport, RefusalReport, RegionReport, Report
from repfuse.select import Selection, Term, is_skip

__all__ = ["add_mixtures", "add_refusals", "region_report"]

UNPACKED = ", which take longer with another kernel for each sample"


def region_report(
    found: Alternatives,
    value: Value,
    terms: tuple[Term, ...],
    removed: Iterable[Value],
    counted: set[Value],
) -> RegionReport:
    """One rewritten value: `removed` are the values that are gone with it.

    counted: values whose cost stands in an earlier row already; those of this row are added.
    """
    graph, before, after, names = found.graph, Cost(), Cost(), []
    for gone in sorted({*removed, value}):
        producer = graph.nodes[gone].producer
        names.append(describe(producer))
        if gone not in counted:
            counted.add(gone)
            operands = graph.operands(gone)
            channels = [graph.nodes[operand].channels for operand in operands]
            if graph.nodes[gone].inner:
                continue
            before += cost_of(producer, graph.nodes[operands[0]].area, channels)
    results = []
    for term in terms:
        operator = term.operator
        if is_skip(term):
            results.append(graph.nodes[term.source].label)
            continue
        plain = found.engine.in_full(operator)
        assert isinstance(plain, Conv | Affine | Mixed)
        results.append(describe(plain))
        after += cost_of(plain, graph.nodes[term.source].area, ())
    if len(results) > 1:
        node = graph.nodes[value]
        after += cost_of(Sum(), node.area, (node.channels,) * len(results))
    return RegionReport(graph.nodes[value].label, names, results, before, after)


def add_refusals(found: Alternatives, selection: Selection, report: Report) -> None:
    """For everything that is still computed as it was: why."""
    graph = found.graph
    by_value: dict[Value, list[tuple[str, str]]] = {}
    for blocked in found.blocked:
        entry = (blocked.refusal.rule, blocked.refusal.reason)
        if entry not in by_value.setdefault(blocked.value, []):
            by_value[blocked.value].append(entry)
    for value, choice in sorted(selection.choices.items()):
        node = graph.nodes[value]
        if not choice.original or node.inner or isinstance(node.producer, Opaque):
            continue
        if isinstance(node.producer, Affine) and node.producer.is_identity:
            continue
        reasons = list(by_value.get(value, []))
        if isinstance(node.producer, Affine) and not reasons:
            reasons.append(("fold_affine", _why_affine(graph, value, by_value)))
        if isinstance(node.producer, Sum) and not reasons:
            reasons += [("merge_branch_sum", reason) for reason in _why_sum(found, value)]
        for rule, reason in reasons:
            report.refusals.append(RefusalReport(node.label, describe(node.producer), rule, reason))
        kept = _kept(found, value) if not reasons else None
        if kept is not None:
            report.kept.append(KeptReport(node.label, describe(node.producer), kept))
    for node in graph.nodes.values():
        reason = node.producer.reason if isinstance(node.producer, Opaque) else ""
        if " " in reason:  # a sentence; what is merely not linear has a name of one word
            report.refusals.append(RefusalReport(node.label, "opaque", "lower", reason))


def add_mixtures(graph: Graph, engine: Engine, report: Report) -> None:
    """Sums that could be one conv with a kernel per sample, if that was asked for."""
    factors = [value for value, node in graph.nodes.items() if isinstance(node.factor, tuple)]
    readers = {reader for value in factors for reader in graph.readers(value)}
    if all(isinstance(graph.nodes[reader].producer, Opaque) for reader in readers):
        return
    found = compile_graph(graph.opened(), engine)
    possible: dict[Value, Mixed] = {}
    for value, operators in found.operators.items():
        mixtures = [one for one in operators.values() if isinstance(one, Mixed)]
        mixtures = [one for one in mixtures if one.gates and engine.emits(one)]
        if isinstance(graph.nodes[value].producer, Sum) and mixtures:
            possible[value] = max(mixtures, key=lambda one: len(one.terms))
    for value, mixed in possible.items():
        if any(reader in possible for reader in graph.readers(value)):
            continue  # a part of a larger sum
        node = graph.nodes[value]
        reason = (
            f"the factors of its branches depend on the input; dynamic=True (--dynamic) can make "
            f"it one {describe(mixed)} for each sample, where that is cheaper"
        )
        report.refusals.append(RefusalReport(node.label, describe(node.producer), PASS, reason))


def _why_affine(graph: Graph, value: Value, by_value: dict[Value, list[tuple[str, str]]]) -> str:
    """A scale and shift stays where neither side of it can take it."""
    (operand,) = graph.operands(value)
    readers = []
    for reader in graph.readers(value):
        node = graph.nodes[reader]
        if isinstance(node.producer, Opaque):
            readers.append(f"{node.label} ({node.producer.reason}), which is not linear")
        elif reader in by_value:
            readers.append(f"{node.label}: {by_value[reader][0][1]}")
        else:
            readers.append(f"{node.label} ({describe(node.producer)})")
    before = graph.nodes[operand]
    parts = [f"it follows {before.label} ({describe(before.producer)})"]
    if operand in graph.pinned and graph.is_linear(operand):
        parts[0] += f", which must exist: {graph.pinned[operand]},"
    if readers or value not in graph.pinned:
        parts.append(f"is read by {'; '.join(dict.fromkeys(readers)) or 'nothing'}")
    if value in graph.pinned:
        parts.append(graph.pinned[value])
    return " and ".join(parts)


def _why_sum(found: Alternatives, value: Value) -> list[str]:
    """Branches of what a method was given, and of the same outside of it, are not merged."""
    graph, sources = found.graph, Counter[Value]()
    operands = sorted(set(graph.operands(value)))
    for operand in operands:
        sources.update({_before_calls(graph, source) for source in found.of(operand)})
    shared = {source for source, count in sources.items() if count > 1}
    return [
        f"{graph.nodes[operand].label} must exist: {graph.pinned[operand]}"
        for operand in operands
        if operand in graph.pinned
        and any(
            source not in shared and _before_calls(graph, source) in shared
            for source in found.of(operand)
        )
    ]


def _before_calls(graph: Graph, source: Value) -> Value:
    """The value that was passed to a method, where the source is what the method was given."""
    while graph.nodes[source].producer == ARGUMENT:
        (source,) = graph.operands(source)
    return source


def _kept(found: Alternatives, value: Value) -> str | None:
    """What the cheapest alternative would cost against what stands there."""
    graph = found.graph
    (first, *_) = graph.operands(value)
    best: tuple[float, Cost, str] | None = None
    own = cost_of(
        graph.nodes[value].producer,
        graph.nodes[first].area,
        [graph.nodes[operand].channels for operand in graph.operands(value)],
    )
    for source, operator in found.of(value).items():
        if operator is graph.nodes[value].producer or not isinstance(operator, Conv | Mixed):
            continue
        if isinstance(operator, Mixed) and not found.engine.emits(operator):
            continue
        cost = cost_of(operator, graph.nodes[source].area, ())
        between = own + _between(found, value, source)
        if best is None or CPU.price(cost) < best[0]:
            best = (
                CPU.price(cost),
                cost,
                f"merged from {graph.nodes[source].label} on it is one {describe(operator)}: "
                f"{cost.macs / max(between.macs, 1):.3g} times the MACs"
                f"{UNPACKED if isinstance(operator, Mixed) else ''}",
            )
    if best is None:
        return None
    needed = _needed(found, value)
    return best[2] if needed is None else f"{best[2]}, and {needed}"


def _needed(found: Alternatives, value: Value) -> str | None:
    """A part of the value that has to exist anyway, which a merge would compute twice."""
    graph = found.graph
    for operand in graph.operands(value):
        if operand in graph.pinned and graph.is_linear(operand):
            return f"{graph.nodes[operand].label} must exist: {graph.pinned[operand]}"
    return None


def _between(found: Alternatives, value: Value, source: Value) -> Cost:
    """What is computed between the source and the value today."""
    graph, total = found.graph, Cost()
    todo, seen = list(graph.operands(value)), {value}
    while todo:
        operand = todo.pop()
        if operand == source or operand in seen or operand < source:
            continue
        seen.add(operand)
        if not graph.is_linear(operand):
            continue
        operands = graph.operands(operand)
        channels = [graph.nodes[inner].channels for inner in operands]
        total += cost_of(graph.nodes[operand].producer, graph.nodes[operands[0]].area, channels)
        todo.extend(operands)
    return total
