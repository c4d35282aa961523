"""What every plan reports: regions with their costs, refusals that still matter, what was kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from repfuse.compiler import Alternatives
from repfuse.cost import CPU, Cost, cost_of
from repfuse.graph import ARGUMENT, Graph, Opaque, Sum, Value, describe
from repfuse.operators import Affine, Conv, Operator
from repfuse.report import KeptReport, RefusalReport, RegionReport, Report
from repfuse.rules import Refusal
from repfuse.select import Selection, Term, is_skip

__all__ = ["add_refusals", "region_report"]


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
    results, made = list[str](), list[Operator]()
    for term in terms:
        operator = term.operator
        if is_skip(term):
            results.append(graph.nodes[term.source].label)
            continue
        plain = found.engine.plain(operator) if isinstance(operator, Conv) else operator
        assert isinstance(plain, Conv | Affine)
        made.append(plain)
        results.append(describe(plain))
        after += cost_of(plain, graph.nodes[term.source].area, ())
    if len(results) > 1:
        node = graph.nodes[value]
        after += cost_of(Sum(), node.area, (node.channels,) * len(results))
    label = graph.nodes[value].label
    return RegionReport(label, names, results, before, after, found.engine.passes_of(made))


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
            whys = _why_sum(found, value) or _why_branches(found, value)
            reasons += [("merge_branch_sum", reason) for reason in whys]
        kept = _kept(found, value) if not reasons else None
        if not reasons and kept is None:
            reasons += _unwritten(found, value)
        for rule, reason in reasons:
            report.refusals.append(RefusalReport(node.label, describe(node.producer), rule, reason))
        if kept is not None:
            report.kept.append(KeptReport(node.label, describe(node.producer), kept))
    for node in graph.nodes.values():
        reason = node.producer.reason if isinstance(node.producer, Opaque) else ""
        if " " in reason:  # a sentence; what is merely not linear has a name of one word
            report.refusals.append(RefusalReport(node.label, "opaque", "lower", reason))


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


def _why_branches(found: Alternatives, value: Value) -> list[str]:
    """A branch is not merged with another one where a single step of it is no affine map of
    what both of them read."""
    graph, operands = found.graph, found.graph.operands(value)
    reads = {operand: {operand, *found.of(operand)} for operand in operands}
    counts = Counter(source for operand in operands for source in reads[operand])
    reasons: dict[str, None] = {}
    for operand in operands:
        for step in sorted(reads[operand]):
            producer = graph.nodes[step].producer
            if not isinstance(producer, Opaque) or producer == ARGUMENT or counts[step] > 1:
                continue
            if " " in producer.reason:  # which is told by itself
                continue
            before = graph.operands(step)
            behind = {source for inner in before for source in (inner, *found.of(inner))}
            shared = {s for s in behind if counts[s] > (s in reads[operand])}
            if shared:
                reasons[_why_step(producer, before[0] in shared)] = None
    return list(reasons)


def _why_step(step: Opaque, on_shared: bool) -> str:
    """What a step does that keeps its branch apart; on_shared: it reads what all branches read."""
    if step.nature == "product":
        return "a branch is multiplied by a factor that depends on the input"
    if step.nature == "in place" and on_shared:
        return f"{step.reason} changes the input of the branches in place between them"
    return f"a branch passes through {step.reason}, across which nothing is merged"


def _before_calls(graph: Graph, source: Value) -> Value:
    """The value that was passed to a method, where the source is what the method was given."""
    while graph.nodes[source].producer == ARGUMENT:
        (source,) = graph.operands(source)
    return source


def _unwritten(found: Alternatives, value: Value) -> list[tuple[str, str]]:
    """Why the framework has no layer for what the value could be made with."""
    convs = [operator for operator in found.of(value).values() if isinstance(operator, Conv)]
    answers = map(found.engine.plain, convs)
    whys = [(answer.rule, answer.reason) for answer in answers if isinstance(answer, Refusal)]
    return list(dict.fromkeys(whys))


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
        if operator is graph.nodes[value].producer or not isinstance(operator, Conv):
            continue
        if not found.engine.emits(operator):
            continue
        cost = cost_of(operator, graph.nodes[source].area, ())
        between = own + _between(found, value, source)
        if best is None or CPU.price(cost) < best[0]:
            best = (
                CPU.price(cost),
                cost,
                f"merged from {graph.nodes[source].label} on it is one {describe(operator)}: "
                f"{cost.macs / max(between.macs, 1):.3g} times the MACs",
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
